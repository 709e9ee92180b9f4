-- Genuine GitHub webhooks as fast as they are answered, each with a delivery id of its own that ends with its number.
--
-- arguments: the id's beginning, bytes of a body, its signature, and "distinct" or "tenth": then each tenth request
-- repeats the id of an earlier one. Prints one line of JSON at the end.
local tenth, head, tail = false, "", ""
local threads = {}
-- Global, because `done` reads it from outside the thread.
sent = 0

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  local body = '{"pad":"' .. string.rep("x", tonumber(arguments[2]) - 10) .. '"}'
  head = "POST /hooks/github HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n"
    .. "X-Hub-Signature-256: sha256=" .. arguments[3] .. "\r\nContent-Length: " .. #body .. "\r\nX-GitHub-Delivery: "
    .. arguments[1] .. "-"
  tail = "\r\n\r\n" .. body
  tenth = arguments[4] == "tenth"
end

function request()
  sent = sent + 1
  local number = sent
  if tenth and sent % 10 == 0 then
    number = sent > 1000 and sent - 991 or sent - 1
  end
  return head .. number .. tail
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"sent":%d,"answered":%d,"refused":%d,"broken":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f}\n',
    threads[1]:get("sent"), summary.requests, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
