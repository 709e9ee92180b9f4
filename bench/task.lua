-- One task for the planner after the other, each with an id of its own and a callback.
local sent, head, middle, tail = 0, "", "", ""

function init(arguments)
  local prefix, callback, bytes, more = arguments[1], arguments[2], tonumber(arguments[3]), arguments[4] or ""
  middle = '{"task_id":"' .. prefix .. "-"
  tail = '","callback_url":"' .. callback .. '",' .. more .. '"prompt":"' .. string.rep("x", bytes) .. '"}'
  head = "POST /agents/planner/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop-token\r\n"
    .. "Content-Type: application/json\r\nContent-Length: " .. #middle + 8 + #tail .. "\r\n\r\n" .. middle
end

function request()
  sent = sent + 1
  return head .. string.format("%08d", sent) .. tail
end
