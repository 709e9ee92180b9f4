// Reads push notifications as a client does that is built with the JavaScript SDK of A2A.
//
// Arguments: files. Prints what was read, as JSON by the names of the files.

import { readFileSync } from "node:fs";
import { basename } from "node:path";

import { StreamResponse } from "@a2a-js/sdk";

const read = process.argv.slice(2).map((path) => {
  const notification = StreamResponse.fromJSON(JSON.parse(readFileSync(path, "utf8")));
  return [basename(path, ".json"), StreamResponse.toJSON(notification)];
});
console.log(JSON.stringify(Object.fromEntries(read)));
