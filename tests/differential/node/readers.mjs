// Reads each body that comes as a line of JSON, and answers what each reader makes of it.
import { Readable, Writable } from "node:stream";
import readline from "node:readline";
import querystring from "node:querystring";

import fastify from "@fastify/busboy";
import busboy from "busboy";
import contentType from "content-type";
import formidable from "formidable";
import multiparty from "multiparty";
import qs from "qs";

const text = (value) => (typeof value === "string" ? value : null);
const own = (object, name) => (Object.hasOwn(object, name) ? [object[name]].flat().map(text) : []);

function ofJson(body) {
  const object = JSON.parse(body);
  if (typeof object !== "object" || object === null || Array.isArray(object)) throw new Error("no object");
  return Object.hasOwn(object, "user") ? [text(object.user)] : [];
}

/** As body-parser does it: in the charset that the Content-Type names. */
function byCharset(body, type) {
  const charset = type ? (contentType.parse(type).parameters.charset ?? "utf-8") : "utf-8";
  return ofJson(new TextDecoder(charset, { fatal: true }).decode(body));
}

function withBusboy(make, body, type) {
  return new Promise((resolve, reject) => {
    const users = [];
    const parser = make({ headers: { "content-type": type } });
    parser.on("field", (name, value) => name === "user" && users.push(value));
    parser.on("file", (_name, file) => file.resume());
    parser.on("error", reject).on("close", () => resolve(users)).on("finish", () => resolve(users));
    parser.end(body);
  });
}

function asRequest(body, type) {
  const request = Readable.from([body]);
  request.headers = { "content-type": type, "content-length": String(body.length) };
  return request;
}

async function withFormidable(body, type) {
  const nowhere = () => new Writable({ write: (_chunk, _encoding, done) => done() });
  const form = formidable({ allowEmptyFiles: true, minFileSize: 0, fileWriteStreamHandler: nowhere });
  const [fields] = await form.parse(asRequest(body, type));
  return own(fields, "user");
}

function withMultiparty(body, type) {
  return new Promise((resolve, reject) => {
    const form = new multiparty.Form();
    const users = [];
    form.on("field", (name, value) => name === "user" && users.push(value));
    form.on("part", (part) => part.resume());
    form.on("error", reject).on("close", () => resolve(users));
    form.parse(asRequest(body, type));
  });
}

async function withFetch(body, type) {
  const form = await new Response(body, { headers: { "content-type": type } }).formData();
  return form.getAll("user").map(text);
}

const asked = (fields) => Object.keys(fields).filter((name) => ["model", "messages", "prompt", "input", "image"].includes(name));

const KINDS = {
  json: {
    "node JSON.parse": (body) => ofJson(new TextDecoder("utf-8", { fatal: false, ignoreBOM: true }).decode(body)),
    "node content-type": byCharset,
    "node fetch json": async (body) => {
      const object = await new Response(body).json();
      return Object.hasOwn(object, "user") ? [text(object.user)] : [];
    },
  },
  form: {
    "node busboy": (body, type) => withBusboy((options) => busboy(options), body, type),
    "node @fastify/busboy": (body, type) => withBusboy((options) => new fastify.Busboy(options), body, type),
    "node formidable": withFormidable,
    "node multiparty": withMultiparty,
    "node fetch formData": withFetch,
  },
  urlencoded: {
    "node querystring": (body) => asked(querystring.parse(body.toString())),
    "node qs": (body) => asked(qs.parse(body.toString())),
    "node qs ;": (body) => asked(qs.parse(body.toString(), { delimiter: /[&;]/ })),
    "node URLSearchParams": (body) => asked(Object.fromEntries(new URLSearchParams(body.toString()))),
  },
};

async function attempt(reader, body, type) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("no end")), 2000)));
  try {
    return await Promise.race([Promise.resolve().then(() => reader(body, type)), late]);
  } catch {
    return null;
  } finally {
    clearTimeout(timer);
  }
}

process.on("uncaughtException", () => {}); // Some readers throw where no caller can catch it.
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { kind, type, body } = JSON.parse(line);
  const answer = {};
  for (const [name, reader] of Object.entries(KINDS[kind])) {
    answer[name] = await attempt(reader, Buffer.from(body, "base64"), type);
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
