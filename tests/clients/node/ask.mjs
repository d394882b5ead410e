// Makes one call with the official client, and prints what comes of it, a JSON value a line.
// Usage: node ask.mjs BASE_URL KEY METHOD PARAMETERS, such as chat.completions.create '{"model":…}'

import OpenAI, { toFile } from "openai";

const [baseURL, key, method, parameters] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));

const client = new OpenAI({
  apiKey: "sk-any",
  baseURL,
  defaultHeaders: { "x-usagepanda-api-key": key },
});
const names = method.split(".");
const last = names.pop();
const resource = names.reduce((parent, name) => parent[name], client);

const body = JSON.parse(parameters);
if (body.image) {
  body.image = await toFile(Buffer.from(body.image), "image.png", { type: "image/png" });
}

try {
  const answer = await resource[last](body);
  if (body.stream) {
    for await (const chunk of answer) print({ chunk });
  }
  print({ answered: true });
} catch (error) {
  const { status, message, type } = error;
  print({ class: error.constructor.name, status, message, type });
}
