-- Sends the bodies of a template in turn for some seconds, lets what is under way finish, then says how many were answered.
-- Arguments: template file, seconds, first number for the marks.
local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds; long nanoseconds; } moment; int clock_gettime(int clock, moment *now);")
local MARK = string.rep("@", 12)
local moment = ffi.new("moment")
local requests, number, seconds, began = {}, 0, 0, nil
local sent, received, bad, asked, told = 0, 0, 0, false, false

local function now()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

local function split(text)
  local pieces, from = {}, 1
  while true do
    local mark = string.find(text, MARK, from, true)
    if not mark then break end
    pieces[#pieces + 1] = string.sub(text, from, mark - 1)
    from = mark + #MARK
  end
  pieces[#pieces + 1] = string.sub(text, from)
  return pieces
end

function init(args)
  seconds, number = tonumber(args[2]), tonumber(args[3])
  for body in io.lines(args[1]) do
    requests[#requests + 1] = split(wrk.format("POST", nil, nil, body))
  end
end

local function tell()
  told = true
  print(string.format("drained %d %d %.6f", received, bad, now() - began))
  io.flush()
end

local function body()
  number = number + 1
  return table.concat(requests[number % #requests + 1], string.format("%012d", number))
end

function request()
  if not asked then asked = true return body() end -- wrk's own look at the script before it begins: never sent
  began = began or now()
  if now() - began >= seconds then
    if received == sent and not told then tell() end
    return "" -- wrk writes nothing and waits: the connection goes silent
  end
  sent = sent + 1
  return body()
end

function response(status)
  received = received + 1
  if status ~= 200 then bad = bad + 1 end
end

function done(summary, latency)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  print(string.format("latency %d %d %d", latency:percentile(50), latency:percentile(99), failed))
end
