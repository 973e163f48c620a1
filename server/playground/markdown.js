// Markdown to DOM nodes: what models write in answers. Text goes into text nodes; anything that looks like HTML stays text.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const MAX_DEPTH = 6;

/** Shows a growing text in `root`; blocks that did not change keep their nodes. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.sources = [];
  }

  /** Show this text. */
  show(text) {
    const blocks = splitBlocks(text.split("\n"));
    const sources = blocks.map((block) => block.type + "\n" + block.lines.join("\n"));
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    this.root.append(...blocks.slice(same).map((block) => renderBlock(block, 0)));
    this.sources = sources;
  }
}

/** Lines to blocks: {type, lines}; an unclosed fence runs to the end, as it does while an answer streams. */
function splitBlocks(lines) {
  const blocks = [];
  let current = null;
  let fence = null;
  const open = (type, line) => {
    current = { type, lines: [line] };
    blocks.push(current);
  };
  for (const line of lines) {
    if (fence !== null) {
      current.lines.push(line);
      if (line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "")) fence = current = null;
      continue;
    }
    const opened = FENCE.exec(line);
    if (opened) {
      fence = opened[1];
      open("fence", line);
    } else if (line.trim() === "") {
      if (current?.type === "list") current.lines.push(line);
      else current = null;
    } else if (RULE.test(line)) {
      open("rule", line);
      current = null;
    } else if (HEADING.test(line)) {
      open("heading", line);
      current = null;
    } else if (ITEM.test(line)) {
      if (current?.type === "list") current.lines.push(line);
      else open("list", line);
    } else if (QUOTE.test(line)) {
      if (current?.type === "quote") current.lines.push(line);
      else open("quote", line);
    } else if (current?.type === "list" && (/^\s{2,}/.test(line) || current.lines.at(-1).trim() !== "")) {
      current.lines.push(line);
    } else if (current?.type === "table" && line.includes("|")) {
      current.lines.push(line);
    } else if (current?.type === "paragraph" && isTable(current.lines.at(-1), line)) {
      const head = current.lines.pop();
      if (!current.lines.length) blocks.pop();
      open("table", head);
      current.lines.push(line);
    } else if (current?.type === "paragraph") {
      current.lines.push(line);
    } else {
      open("paragraph", line);
    }
  }
  return blocks;
}

function renderBlock({ type, lines }, depth) {
  switch (type) {
    case "fence":
      return renderFence(lines);
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      // The page's own headings are h1 and h2.
      return el(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text));
    }
    case "rule":
      return el("hr");
    case "quote": {
      const inner = lines.map((line) => QUOTE.exec(line)[1]);
      return el("blockquote", {}, ...renderNested(inner, depth));
    }
    case "list":
      return renderList(lines, depth);
    case "table":
      return renderTable(lines);
    default:
      return el("p", {}, ...paragraph(lines));
  }
}

function renderNested(lines, depth) {
  if (depth >= MAX_DEPTH) return paragraph(lines);
  return splitBlocks(lines).map((block) => renderBlock(block, depth + 1));
}

function paragraph(lines) {
  return inline(lines.map((line) => line.trim()).join("\n"));
}

function renderFence(lines) {
  const [, fence, language] = FENCE.exec(lines[0]);
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.startsWith(fence) && !last.replaceAll(fence[0], "");
  const code = lines.slice(1, closed ? -1 : undefined).join("\n");
  return el(
    "figure",
    { class: "code" },
    el("figcaption", {}, el("span", {}, language || "text"), copyButton(() => code, { class: "quiet" })),
    el("pre", { tabindex: "0" }, el("code", {}, code)),
  );
}

function renderList(lines, depth) {
  const [, margin, marker] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(marker);
  const start = ordered ? parseInt(marker, 10) : 1;
  const list = el(ordered ? "ol" : "ul", start !== 1 ? { start: String(start) } : {});
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= margin.length + 1) items.push([found[3]]);
    else items.at(-1).push(line);
  }
  for (const [first, ...rest] of items) {
    const indent = Math.min(...rest.filter((line) => line.trim()).map((line) => line.search(/\S/)), 8);
    const inner = rest.map((line) => line.slice(Number.isFinite(indent) ? indent : 0));
    while (inner.length && inner.at(-1).trim() === "") inner.pop();
    const item = el("li", {}, ...inline(first));
    if (inner.length) item.append(...renderNested(inner, depth));
    list.append(item);
  }
  return list;
}

/** The cells of a line of a table; `\\|` is a bar within one. */
function cells(line) {
  const parts = line.trim().split(/(?<!\\)\|/);
  if (parts[0] === "") parts.shift();
  if (parts.at(-1) === "") parts.pop();
  return parts.map((part) => part.trim().replaceAll("\\|", "|"));
}

/** Whether these two lines are the head of a table and the rule below it. */
function isTable(head, rule) {
  if (!head.includes("|") || !/^[-|: \t]+$/.test(rule)) return false;
  const rules = cells(rule);
  return rules.every((cell) => /^:?-+:?$/.test(cell)) && rules.length === cells(head).length;
}

function renderTable([head, rule, ...rows]) {
  const alignments = cells(rule).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : null));
  const row = (tag, texts) =>
    el("tr", {}, ...alignments.map((alignment, place) => el(tag, { class: alignment }, ...inline(texts[place] ?? ""))));
  return el(
    "div",
    { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
    el("table", {}, el("thead", {}, row("th", cells(head))), el("tbody", {}, ...rows.map((line) => row("td", cells(line))))),
  );
}

const ESCAPED = /[!-/:-@[-`{-~]/;
const BARE_LINK = /^https?:\/\/[^\s<>"'`*]+[^\s<>"'`*.,:;!?)\]}]/;

/** Inline markup to nodes: code, bold, italic, struck, links. Newlines are line breaks, as chat models mean them. */
function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set();
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  /** Where `mark` closes what opens before `from`, or -1; what was not found once is not sought again. */
  const closing = (mark, from) => {
    if (missing.has(mark)) return -1;
    const at = text.indexOf(mark, from);
    if (at === -1) missing.add(mark);
    return at;
  };
  let at = 0;
  while (at < text.length) {
    const match = depth < MAX_DEPTH ? span(text, at, closing, depth) : null;
    if (match) {
      flush();
      nodes.push(match.node);
      at = match.end;
    } else if (text[at] === "\\" && ESCAPED.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (text[at] === "\n") {
      flush();
      nodes.push(el("br"));
      at += 1;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  flush();
  return nodes;
}

/** The markup that begins at `at`, as {node, end}; null when the character is plain. */
function span(text, at, closing, depth) {
  const character = text[at];
  if (character === "`") return codeSpan(text, at, closing);
  if (character === "*" || character === "_" || character === "~") return emphasis(text, at, closing, depth);
  if (character === "[") return link(text, at);
  if (character === "h" && !/\w/.test(text[at - 1] ?? " ")) {
    const found = BARE_LINK.exec(text.slice(at, at + 2048));
    if (found) return { node: anchor(found[0], [found[0]]), end: at + found[0].length };
  }
  return null;
}

function codeSpan(text, at, closing) {
  let marks = "`";
  while (text[at + marks.length] === "`") marks += "`";
  const close = closing(marks, at + marks.length);
  if (close === -1) return null;
  return { node: el("code", {}, text.slice(at + marks.length, close).trim() || " "), end: close + marks.length };
}

const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "s" };

function emphasis(text, at, closing, depth) {
  const double = text.slice(at, at + 2);
  const mark = TAGS[double] ? double : text[at];
  const tag = TAGS[mark];
  const start = at + mark.length;
  if (!tag || /\s/.test(text[start] ?? " ")) return null;
  if (mark[0] === "_" && /\w/.test(text[at - 1] ?? " ")) return null;
  const close = closing(mark, start + 1);
  if (close === -1 || /\s/.test(text[close - 1])) return null;
  if (mark[0] === "_" && /\w/.test(text[close + mark.length] ?? " ")) return null;
  return { node: el(tag, {}, ...inline(text.slice(start, close), depth + 1)), end: close + mark.length };
}

const LINK = /^\[([^\][\n]{1,500})\]\(\s*<?(https?:\/\/[^\s()<>]{1,2000})>?(?:\s+"[^"\n]*")?\s*\)/i;

function link(text, at) {
  const found = LINK.exec(text.slice(at, at + 2600));
  if (!found) return null;
  // The text of a link is plain: an address in it would be a link within the link.
  return { node: anchor(found[2], inline(found[1], MAX_DEPTH)), end: at + found[0].length };
}

function anchor(target, children) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return el("span", {}, ...children);
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return el("span", {}, ...children);
  return el("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, ...children);
}
