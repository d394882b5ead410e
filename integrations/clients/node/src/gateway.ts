// A small gateway for OpenAI-compatible APIs that asks policyd about every request before it forwards it.

import { loadPackageDefinition, credentials } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { randomBytes } from "node:crypto";
import http, { type IncomingMessage, type ServerResponse } from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { ProtoGrpcType } from "./stubs/policy.js";
import type { EvaluateRequest } from "./stubs/policyd/v1/EvaluateRequest.js";
import type { EvaluateResponse__Output } from "./stubs/policyd/v1/EvaluateResponse.js";
import type { PolicyServiceClient } from "./stubs/policyd/v1/PolicyService.js";

// policyd reads 4 MiB of a body, and accepts no larger message; headers need room in it, too.
const MAX_BODY = 4 * 2 ** 20 - 64 * 2 ** 10;
// A policyd that is being replaced closes its connections: the call is tried again within the deadline,
// at each of several addresses in turn.
const CALLS = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "policyd.v1.PolicyService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "0.5s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};
// Besides its own headers, policyd reads those that describe the body, name the end user or turn another method into a POST.
const READ = /^(content-(type|encoding)|openai-safety-identifier|x[-_]http[-_]method([-_]override)?|x[-_]method[-_]override)$/i;
const CORS = ["Access-Control-Allow-Origin", "*", "Access-Control-Allow-Methods", "OPTIONS,POST,GET", "Content-Type", "application/json"];
const HOP_BY_HOP = new Set(["connection", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings", "expect", "host"]);
// A client's Connection header removes none of these: policyd, or the upstream, reads the request by them.
const END_TO_END = /^(authorization|content-(encoding|length|type)|openai-safety-identifier)$/;

const { values: settings } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:8080" },
    policyd: { type: "string", default: "127.0.0.1:50051" },
    "policy-timeout": { type: "string", default: "1" }, // seconds
    upstream: { type: "string", default: "https://api.openai.com" },
  },
});
const upstream = new URL(settings.upstream);
const PREFIX = upstream.pathname.replace(/\/$/, "");
const policyd = connect(settings.policyd);
const policyTimeout = Number(settings["policy-timeout"]) * 1000;
const isSecure = upstream.protocol === "https:";
// An idle connection is closed before the upstream closes it, as many do after 5 s.
const agent = new (isSecure ? https : http).Agent({ keepAlive: true, timeout: 4000 });

function connect(address: string): PolicyServiceClient {
  const protos = fileURLToPath(new URL("../../../../protos", import.meta.url));
  const definition = loadSync("policyd/v1/policy.proto", {
    includeDirs: [protos],
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  });
  const { policyd } = loadPackageDefinition(definition) as unknown as ProtoGrpcType;
  return new policyd.v1.PolicyService(address, credentials.createInsecure(), {
    "grpc.service_config": JSON.stringify(CALLS),
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    // The gateway notices after 12 s, not after minutes, that policyd has vanished, and reconnects.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 2_000,
    "grpc.keepalive_permit_without_calls": 1,
  });
}

function evaluate(descriptor: EvaluateRequest): Promise<EvaluateResponse__Output> {
  return new Promise((resolve, reject) => {
    policyd.evaluate(descriptor, { deadline: Date.now() + policyTimeout }, (error, answer) => {
      if (answer) resolve(answer);
      else reject(error);
    });
  });
}

async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (request.method === "OPTIONS") {
    response.writeHead(200, ["Access-Control-Allow-Headers", "*, Authorization", ...CORS]).end("{}");
    return;
  }
  if (/websocket/i.test(request.headers.upgrade ?? "")) {
    // After a 426, clients that also speak HTTP try it at once.
    return answerError(response, 426, "invalid_request", "No policy can see into WebSockets. Ask over HTTP", ["Upgrade", "HTTP/1.1", "Connection", "Upgrade"]);
  }
  if (!request.url?.startsWith("/")) {
    return answerError(response, 400, "invalid_request", "Send a path that begins with /");
  }
  const begun = await readUpTo(request, MAX_BODY);
  let answer: EvaluateResponse__Output;
  try {
    answer = await evaluate(describe(request, begun));
  } catch (error) {
    // Fail closed: without a decision nothing goes upstream.
    console.error("no decision:", error);
    return answerError(response, 503, "server_error", "The policy service gave no decision. Try again", ["Retry-After", "1"]);
  }
  if (answer.decision === "DECISION_ALLOW") {
    await forward(request, response, begun, answer.upstreamPath);
  } else if (answer.denial) {
    const headers = answer.denial.headers.flatMap(({ name, value }) => [name, value]);
    headers.push("Date", new Date().toUTCString(), "Content-Length", String(answer.denial.body.length), "x-request-id", answer.decisionId);
    response.writeHead(answer.denial.httpStatus, headers).end(answer.denial.body);
  }
}

/** The body, or its beginning where it is larger than `limit`. */
async function readUpTo(request: IncomingMessage, limit: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > limit) break;
  }
  return Buffer.concat(chunks);
}

/** The descriptor of a request, with its body, which policyd reads, and the path that goes upstream. */
function describe(request: IncomingMessage, body: Buffer): EvaluateRequest {
  const read = pairs(request.rawHeaders).filter(([name]) => isOurs(name) || READ.test(name));
  return {
    method: request.method ?? "",
    path: PREFIX + (request.url ?? "/"),
    headers: read.map(([name, value]) => ({ name, value })),
    sourceIp: request.socket.remoteAddress ?? "",
    userAgent: request.headers["user-agent"] ?? "",
    // Each attempt at a call repeats this key, so that policyd decides and logs it once.
    idempotencyKey: Date.now().toString(16).padStart(12, "0") + randomBytes(10).toString("hex"),
    ...(body.length > MAX_BODY ? { userState: "USER_STATE_TOO_LARGE" } : { rawBody: { content: body } }),
  };
}

/** Sends a request upstream with the path by which policyd decided, and otherwise unchanged. */
async function forward(request: IncomingMessage, response: ServerResponse, begun: Buffer, canonicalPath: string): Promise<void> {
  const { path, query } = splitTarget(request);
  const named = (request.headers.connection ?? "").toLowerCase().split(",").map((name) => name.trim());
  const forOneHop = new Set([...HOP_BY_HOP, ...named.filter((name) => !END_TO_END.test(name))]);
  const passedOn = pairs(request.rawHeaders).filter(([name]) => !isOurs(name) && !forOneHop.has(name.toLowerCase()));
  const outgoing = (isSecure ? https : http).request({
    agent,
    hostname: upstream.hostname,
    port: upstream.port,
    method: request.method,
    path: (canonicalPath || PREFIX + path) + query,
    headers: ["Host", upstream.host, ...passedOn.flat(), ...(request.headers["transfer-encoding"] ? ["Transfer-Encoding", "chunked"] : [])],
  });
  response.on("close", () => outgoing.destroy()); // The client may leave before its answer is whole.
  try {
    const incoming = await new Promise<IncomingMessage>((resolve, reject) => {
      outgoing.on("response", resolve).on("error", reject);
      pipeline(body(begun, request), outgoing).catch(reject);
    });
    const headers = pairs(incoming.rawHeaders).filter(([name]) => !HOP_BY_HOP.has(name.toLowerCase()));
    // Lets browsers read the answer.
    if (!incoming.headers["access-control-allow-origin"]) headers.push(["Access-Control-Allow-Origin", "*"]);
    response.writeHead(incoming.statusCode ?? 502, headers.flat());
    await pipeline(incoming, response);
  } catch (error) {
    console.error("no answer from upstream:", error);
    if (response.headersSent) response.destroy();
    else answerError(response, 502, "server_error", "The upstream API cannot be reached. Try again");
  }
}

/** The whole body: the part that was read already, then the rest. */
function body(begun: Buffer, request: IncomingMessage): Readable {
  return Readable.from(
    (async function* () {
      if (begun.length) yield begun;
      if (!request.readableEnded) yield* request;
    })(),
  );
}

/** Answers with an error of this gateway, in the shape of OpenAI's errors. */
function answerError(response: ServerResponse, status: number, type: string, message: string, headers: string[] = []): void {
  const error = { message: `Usage Panda: ${message}`, type, param: null, code: null };
  response.writeHead(status, ["Access-Control-Allow-Headers", "*", ...CORS, ...headers]).end(JSON.stringify({ error }));
}

function splitTarget(request: IncomingMessage): { path: string; query: string } {
  const target = request.url ?? "/";
  const end = target.indexOf("?");
  return end < 0 ? { path: target, query: "" } : { path: target.slice(0, end), query: target.slice(end) };
}

/** Whether a header is policyd's, or a server may take it for one: some read an underscore as a dash. */
function isOurs(header: string): boolean {
  return /^x[-_]usagepanda[-_]/i.test(header);
}

function pairs(raw: string[]): [string, string][] {
  return raw.flatMap((name, index) => (index % 2 ? [] : [[name, raw[index + 1] ?? ""] as [string, string]]));
}

const server = http.createServer((request, response) => {
  serve(request, response).catch((error) => {
    console.error("a fault of the gateway:", error);
    response.destroy();
  });
});
const [host = "", port = ""] = settings.listen.split(":");
server.listen(Number(port), host, () => {
  console.log(`gateway is ready: http://${host}:${(server.address() as AddressInfo).port}`);
});
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => {
    server.close();
    server.closeIdleConnections();
    policyd.close();
    agent.destroy();
  });
}
