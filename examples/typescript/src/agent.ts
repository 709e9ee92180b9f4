/**
 * An agent: takes events from its durable consumer, answers each on the outbox.
 *
 * The promise is that every event is answered, and that a repeated event is answered once. It
 * holds because of the order of things: the answer is stored (JetStream confirms it) before the
 * event is acknowledged, and the answer's id is derived from the event's. An agent that dies
 * between the two gets the event again and gives the same id, and the stream drops the repeat.
 *
 * Replace `work` with yours; the rest stays as it is.
 */

import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import {
  type Consumer,
  JetStreamApiError,
  type JetStreamClient,
  jetstream,
  type JsMsg,
} from "@nats-io/jetstream";
import { connect, headers, millis, type MsgHdrs, type NatsConnection } from "@nats-io/transport-node";

/** A webhook that the gateway has verified. */
type Event = { id: string; source: string; type: string; subject: string; data: Uint8Array };

/** Where answers go: an endpoint from the configuration, or a URL. */
type Destination = { endpoint: string } | { callback_url: string };

type Options = {
  nats: string;
  agent: string;
  stream: string;
  destination: Destination;
  events: number;
};

/** Summarises an event. It may take its time, as long as it awaits what it waits for. */
async function work(event: Event): Promise<object> {
  let summary = `${event.type} from ${event.source}, ${event.data.length} bytes`;
  const fields = Object.keys(parseObject(event.data)).sort();
  if (fields.length > 0) summary += ` with ${fields.join(", ")}`;
  return { event: event.id, type: event.type, summary };
}

async function run(options: Options): Promise<number> {
  const connection = await connect({
    servers: options.nats.split(","),
    name: options.agent,
    waitOnFirstConnect: true,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 1_000,
  });
  try {
    return await consume(connection, options);
  } finally {
    // Draining makes sure that the last ack reaches the server, if there is one.
    await Promise.race([connection.drain().catch(() => {}), sleep(5_000)]);
  }
}

async function consume(connection: NatsConnection, options: Options): Promise<number> {
  const client = jetstream(connection);
  const consumer = await findConsumer(client, options);
  if (consumer === undefined) {
    log(
      `there is no consumer \`${options.agent}\` on the stream \`${options.stream}\`: ` +
        `add [agents.${options.agent}] to Hookbridge's configuration and restart it`,
    );
    return 1;
  }
  const { config } = await consumer.info(true);
  const ackWait = millis(config.ack_wait ?? 0) || 30_000;
  const stop = stopOnSignals();
  emit({ ready: true });

  for (let handled = 0; handled < options.events && !stop.aborted; ) {
    const message = await nextMessage(consumer, stop);
    if (message !== null && (await handle(client, message, ackWait, options))) handled += 1;
  }
  return 0;
}

/**
 * Returns the agent's consumer, or undefined if it does not exist. It is never created here:
 * which events an agent gets is the configuration's say.
 */
async function findConsumer(client: JetStreamClient, options: Options): Promise<Consumer | undefined> {
  for (;;) {
    try {
      return await client.consumers.get(options.stream, options.agent);
    } catch (error) {
      if (error instanceof JetStreamApiError && error.status === 404) return undefined;
      log(`JetStream does not answer yet: ${error}`); // A server that has just started needs a moment.
      await sleep(1_000);
    }
  }
}

/** Returns the next message, or null when there is none yet or it is time to stop. */
async function nextMessage(consumer: Consumer, stop: AbortSignal): Promise<JsMsg | null> {
  // One at a time: a message that waits here unseen would use up its ack_wait.
  const messages = await consumer.fetch({ max_messages: 1, expires: 5_000 });
  const close = () => void messages.close();
  stop.addEventListener("abort", close);
  try {
    for await (const message of messages) return message;
  } catch (error) {
    log(`no event can be fetched: ${error}`);
    await sleep(1_000);
  } finally {
    stop.removeEventListener("abort", close);
  }
  return null;
}

/** Answers one event; returns whether the answer is stored and the event acknowledged. */
async function handle(
  client: JetStreamClient,
  message: JsMsg,
  ackWait: number,
  options: Options,
): Promise<boolean> {
  const id = message.headers?.get("ce-id");
  if (!message.headers || !id) {
    log(`a message on ${message.subject} has no ce-id, so it is not an event`);
    message.term();
    return false;
  }
  const event: Event = {
    id: percentDecoded(id),
    source: percentDecoded(message.headers.get("ce-source")),
    type: percentDecoded(message.headers.get("ce-type") || "unknown"),
    subject: message.subject,
    data: message.data,
  };
  // It tells the server that work goes on, so that it gives the event to nobody else.
  const heartbeat = setInterval(() => message.working(), ackWait / 3);
  try {
    const payload = await work(event);
    const stored = await answer(client, message.headers, payload, options);
    message.ack();
    emit({ event: event.id, subject: event.subject, ...stored });
    return true;
  } catch (error) {
    // Whatever went wrong, the event must come back.
    const delay = Math.min(2 ** message.info.deliveryCount, 300);
    log(`event ${event.id} comes back in ${delay} s: ${error}`);
    message.nak(delay * 1_000);
    return false;
  } finally {
    clearInterval(heartbeat);
  }
}

/** Publishes to the outbox and waits until the stream has stored it. */
async function answer(client: JetStreamClient, event: MsgHdrs, payload: object, options: Options) {
  const id = answerId(options.agent, event);
  // Passing the trace context on joins the webhook's trace with the delivery's.
  const trace = headers();
  for (const name of ["traceparent", "tracestate"]) {
    if (event.has(name)) trace.set(name, event.get(name));
  }
  const ack = await client.publish(
    `outbox.${options.agent}`,
    JSON.stringify({ ...options.destination, id, payload }),
    { msgID: id, headers: trace },
  );
  return { answered: id, duplicate: ack.duplicate };
}

/**
 * Names the answer: the same for the same event, another for every other agent.
 *
 * Event ids are unique within their source and may hold any character, message ids are at most 64
 * of [A-Za-z0-9_-] and shared by all agents. Hence the hash, with the agent's name before it.
 */
function answerId(agent: string, event: MsgHdrs): string {
  const origin = [agent, event.get("ce-source"), event.get("ce-id")].join("\n");
  return `${agent.slice(0, 31)}-${createHash("sha256").update(origin).digest("hex").slice(0, 32)}`;
}

/** The first signal lets the event in hand be finished, a second one stops at once. */
function stopOnSignals(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => controller.abort());
  return controller.signal;
}

function parseObject(data: Uint8Array): object {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(data));
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}

function percentDecoded(value: string): string {
  try {
    return decodeURIComponent(value);
  } catch {
    return value; // Not everybody who publishes encodes as the CloudEvents binding says.
  }
}

function log(text: string): void {
  process.stderr.write(`${text}\n`);
}

function emit(record: object): void {
  process.stdout.write(`${JSON.stringify(record)}\n`);
}

function parseOptions(): Options {
  const { env } = process;
  const { values } = parseArgs({
    options: {
      nats: { type: "string", default: env["NATS_URL"] || "nats://127.0.0.1:4222" },
      agent: { type: "string", default: env["HOOKBRIDGE_AGENT"] || "planner" },
      stream: { type: "string", default: env["HOOKBRIDGE_STREAM"] || "EVENTS" },
      events: { type: "string" },
      endpoint: { type: "string" },
      "callback-url": { type: "string" },
    },
  });
  let { endpoint, "callback-url": callbackUrl } = values;
  if (!endpoint && !callbackUrl) {
    endpoint = env["HOOKBRIDGE_ENDPOINT"];
    callbackUrl = env["HOOKBRIDGE_CALLBACK_URL"];
  }
  const { nats, agent, stream } = values;
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(agent)) {
    throw new Error("an agent's name is 1 to 64 of A-Z, a-z, 0-9, _ and -");
  }
  const events = values.events === undefined ? Infinity : Number(values.events);
  if (events !== Infinity && !(Number.isInteger(events) && events >= 1)) {
    throw new Error("--events must be at least 1");
  }
  const options = { nats, agent, stream, events };
  if (endpoint && !callbackUrl) return { ...options, destination: { endpoint } };
  if (callbackUrl && !endpoint) return { ...options, destination: { callback_url: callbackUrl } };
  throw new Error("say where answers go: either --endpoint or --callback-url");
}

async function main(): Promise<number> {
  let options: Options;
  try {
    options = parseOptions();
  } catch (error) {
    log(`agent: ${error instanceof Error ? error.message : error}`);
    return 2;
  }
  try {
    return await run(options);
  } catch (error) {
    log(`NATS: ${error}`);
    return 1;
  }
}

// A client that is still trying to reconnect would keep the process alive, so this ends it.
process.exit(await main());
