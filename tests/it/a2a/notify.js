// Sends push notifications as an agent does that is built with the JavaScript SDK of A2A.
//
// Arguments: the URL, and as JSON what else the client configured, such as {"token": "…"}. The SDK tells nobody
// whether a notification arrived; it logs it.

import { A2A_PROTOCOL_VERSION, StreamResponse, TaskPushNotificationConfig } from "@a2a-js/sdk";
import { DefaultPushNotificationSender, InMemoryPushNotificationStore, ServerCallContext } from "@a2a-js/sdk/server";

const [url, configured] = process.argv.slice(2);
const status = { state: "TASK_STATE_WORKING", timestamp: "2026-08-01T12:00:00.500Z" };
const notifications = [
  { statusUpdate: { taskId: "t-1", contextId: "c-1", status, metadata: { progress: 0.5 } } },
  {
    task: {
      id: "t-1",
      contextId: "c-1",
      status: { state: "TASK_STATE_COMPLETED" },
      artifacts: [{ artifactId: "a-1", parts: [{ text: "42" }] }],
    },
  },
];

const context = new ServerCallContext({ requestedVersion: A2A_PROTOCOL_VERSION });
const store = new InMemoryPushNotificationStore();
await store.save("t-1", context, TaskPushNotificationConfig.fromJSON({ url, ...JSON.parse(configured) }));
const sender = new DefaultPushNotificationSender(store, { timeout: 10_000 });
for (const notification of notifications) {
  await sender.send(StreamResponse.fromJSON(notification), context);
}
