// A person with a browser: opens a link, signs in, agrees, and keeps pictures of what they saw.

import { mkdirSync } from "node:fs";
import { join } from "node:path";

import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // Where the focus is must be there at once, not slide into sight.
  "--disable-smooth-scrolling",
];
const PICTURES = process.env.OBO_E2E_SCREENSHOTS;
const SIZES = { narrow: { width: 320, height: 640 }, wide: { width: 1280, height: 800 } };

export async function openBrowser() {
  return chromium.launch({ executablePath: process.env.OBO_E2E_CHROMIUM, args: FLAGS });
}

export class Person {
  /**
   * A browser profile of one person. `javascript: false` is how the pages must work too. `tries`: whether each page is
   * tried on a narrow screen and with a keyboard.
   */
  static async at(browser, { name, token, javascript = false, tries = true }) {
    const person = new Person();
    person.tries = tries;
    person.name = name;
    person.token = token;
    person.context = await browser.newContext({ javaScriptEnabled: javascript, viewport: SIZES.wide });
    person.page = await person.context.newPage();
    person.seen = []; // what was on each page, and how it can be used
    return person;
  }

  /** Takes the page as it is into the record, and pictures of it. */
  async look(title, response) {
    const headers = response ? await response.allHeaders() : {};
    const text = await this.page.locator("body").innerText();
    const use = this.tries ? await this.use() : {};
    const html = await this.page.content();
    this.seen.push({ title, url: this.page.url(), status: response?.status(), headers, text, html, ...use });
    if (PICTURES) {
      mkdirSync(PICTURES, { recursive: true });
      for (const scheme of ["light", "dark"]) {
        for (const [size, viewport] of Object.entries(SIZES)) {
          await this.page.emulateMedia({ colorScheme: scheme });
          await this.page.setViewportSize(viewport);
          await this.page.screenshot({ path: join(PICTURES, `${title}-${scheme}-${size}.png`), fullPage: true });
        }
      }
      await this.page.setViewportSize(SIZES.wide);
    }
    return text;
  }

  /** How wide the page is on a narrow screen, and what the keyboard reaches on it, with the outline that shows it. */
  async use() {
    await this.page.setViewportSize(SIZES.narrow);
    const wide = await this.page.evaluate(() => document.documentElement.scrollWidth);
    await this.page.setViewportSize(SIZES.wide);
    const controls = await this.page.locator("button, a, input:not([type=hidden])").count();
    const reached = new Map();
    // One more than there are: between the last and the first the focus is on none of them.
    for (let n = 0; n <= controls; n++) {
      await this.page.keyboard.press("Tab");
      const { name, ...seen } = await this.page.evaluate(() => {
        const { activeElement: at } = document;
        const { outlineStyle, outlineWidth } = getComputedStyle(at);
        const outline = outlineStyle === "none" ? 0 : parseFloat(outlineWidth);
        const name = at === document.body ? null : `${at.outerHTML.slice(0, 60)} ${at.textContent}`;
        return { name, outline, height: at.getBoundingClientRect().height };
      });
      if (name !== null) reached.set(name, { name, ...seen });
    }
    return { narrow: { wide }, controls, reached: [...reached.values()] };
  }

  async open(url, title) {
    const response = await this.page.goto(url);
    await this.look(title, response);
    return response;
  }

  /** Presses the one submit button of the page and waits for the page that follows. */
  async press(title, button = this.page.locator("form button, form input[type=submit]").first()) {
    const [response] = await Promise.all([
      this.page.waitForResponse((answer) => answer.request().isNavigationRequest() && !isRedirect(answer)),
      button.click(),
    ]);
    await this.page.waitForLoadState();
    await this.look(title, response);
    return response;
  }

  /** What has the focus, as somebody who cannot use a mouse knows it. */
  async focus() {
    return this.page.evaluate(() => {
      const { activeElement: at } = document;
      if (at === document.body) return null;
      const { outlineStyle, outlineWidth, visibility, opacity } = getComputedStyle(at);
      const { top, left, right, bottom, width, height } = at.getBoundingClientRect();
      // What is scrolled to may begin between two pixels.
      const inside = top > -1 && left > -1 && right < innerWidth + 1 && bottom < innerHeight + 1;
      const label = at.getAttribute("aria-label") ?? at.labels?.[0]?.textContent ?? at.textContent;
      return {
        label: label.trim(),
        outline: outlineStyle === "none" ? 0 : parseFloat(outlineWidth),
        visible: visibility === "visible" && opacity === "1" && width > 0 && height > 0 && inside,
      };
    });
  }

  /**
   * Presses Tab until the focus is on what `text` is on. On pages of ours all that is met on the way must be seen and say
   * what it is. `optional`: it may not be there.
   */
  async tabTo(text, { ours = true, optional = false } = {}) {
    const met = [];
    for (let n = 0; n < 40; n++) {
      await this.page.keyboard.press("Tab");
      const focus = await this.focus();
      if (focus === null) continue;
      met.push(focus.label);
      if (ours && !(focus.visible && focus.label && focus.outline >= 2)) {
        throw new Error(`at ${this.page.url()} the focus cannot be seen, or has no name: ${JSON.stringify(focus)}`);
      }
      if (focus.label.includes(text)) return;
    }
    if (!optional) throw new Error(`at ${this.page.url()} the keyboard does not reach ${text}: ${met.join(", ")}`);
  }

  /** Presses Enter on what has the focus, and waits for the page that follows. */
  async enter() {
    await Promise.all([this.page.waitForEvent("load"), this.page.keyboard.press("Enter")]);
  }

  /** Fills in the token form, if the page shows one. */
  async signIn(title) {
    const field = this.page.locator("input[name=token]");
    if ((await field.count()) === 0) return null;
    await field.fill(this.token);
    return this.press(title);
  }

  /** From the consent link to the page that says which account was connected; returns that page's text. */
  async consent(link, { account, title }) {
    await this.open(link, `${title}-1-link`);
    await this.signIn(`${title}-2-signed-in`);
    await this.press(`${title}-3-provider`);
    await this.press(`${title}-4-connected`, this.page.locator("button", { hasText: account }).first());
    return this.seen.at(-1).text;
  }

  async close() {
    await this.context.close();
  }
}

function isRedirect(answer) {
  return answer.status() >= 300 && answer.status() < 400;
}
