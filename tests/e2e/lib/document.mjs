// Client ID Metadata Documents, on https as clients demand: a site of `localhost`, and the authority that certifies it.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export class DocumentSite {
  /** `python`: an interpreter that has `cryptography`. */
  static async open(python) {
    const site = new DocumentSite();
    site.folder = mkdtempSync(join(tmpdir(), "obo-e2e-site-"));
    const [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map((name) => join(site.folder, name));
    execFileSync(python, ["-B", fileURLToPath(new URL("certificate.py", import.meta.url)), ca, cert, key]);
    site.caFile = ca;
    site.documents = new Map();
    site.server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, ({ url }, answer) => {
      const document = site.documents.get(url);
      answer.writeHead(document ? 200 : 404, { "content-type": "application/json" });
      answer.end(JSON.stringify(document ?? {}));
    });
    await new Promise((done) => site.server.listen(0, "127.0.0.1", done));
    site.host = `localhost:${site.server.address().port}`;
    return site;
  }

  /** Publishes a client's document and returns its address, which is the client's id. */
  publish(path, name, redirectUris) {
    const url = `https://${this.host}${path}`;
    const named = { client_id: url, client_name: name, redirect_uris: redirectUris };
    this.documents.set(path, { ...named, token_endpoint_auth_method: "none" });
    return url;
  }

  async close() {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
    rmSync(this.folder, { recursive: true });
  }
}
