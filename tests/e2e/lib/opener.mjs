// Catches the addresses that clients want to show their person. Programs open them with `$BROWSER`, which is
// `open-in-browser.mjs` here; clients that run in the suite itself call `show`.

import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

export class Opener {
  static async open() {
    const opener = new Opener();
    opener.person = null;
    opener.server = createServer(async (asked, answered) => {
      let url = "";
      for await (const piece of asked) url += piece;
      answered.end();
      opener.show(url);
    });
    await new Promise((done) => opener.server.listen(0, "127.0.0.1", done));
    return opener;
  }

  /** The environment in which a program that is started finds its browser. */
  get environment() {
    return {
      BROWSER: fileURLToPath(new URL("open-in-browser.mjs", import.meta.url)),
      OBO_E2E_OPENER: `http://127.0.0.1:${this.server.address().port}`,
    };
  }

  show(url) {
    if (!this.person) throw new Error(`a client opens a browser that nobody waits for: ${new URL(url).pathname}`);
    this.person(url);
  }

  /**
   * Does `work` while a person waits at their browser, who does `visit(url)` with every address that is opened.
   * Returns `{result, opened}`: what came of the work, and what was opened.
   */
  async with(visit, work) {
    const visits = [];
    const opened = [];
    const failed = new Promise((_, fail) => {
      this.person = (url) => {
        opened.push(url);
        visits.push(visit(url).catch(fail));
      };
    });
    try {
      // Whatever comes of the work, the person finishes what they do.
      const done = async () => {
        const [{ value: result, reason, status }] = await Promise.allSettled([work()]);
        await Promise.all(visits);
        if (status === "rejected") throw reason;
        return { result, opened };
      };
      return await Promise.race([done(), failed]);
    } finally {
      this.person = null;
    }
  }

  async close() {
    await new Promise((done) => this.server.close(done));
  }
}
