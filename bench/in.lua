-- One genuine GitHub webhook after the other, each with a delivery id of its own.
local body = '{"pad": "' .. string.rep("x", 1012) .. '"}'
local sent, head, tail = 0, "", ""

function init(arguments)
  head = "POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n"
    .. "X-Hub-Signature-256: sha256=" .. arguments[1] .. "\r\nContent-Length: " .. #body .. "\r\nX-GitHub-Delivery: "
    .. arguments[2] .. "-"
  tail = "\r\n\r\n" .. body
end

function request()
  sent = sent + 1
  return head .. sent .. tail
end
