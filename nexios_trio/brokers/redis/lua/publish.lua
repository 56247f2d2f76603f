-- Number a message, keep it, hand it to all nodes: one step.
--
-- KEYS[1] stream   {group}:s
-- KEYS[2] meta     {group}:m    e epoch, o offset, l nonce of the newest, c bytes ever, f bytes before the
--                               oldest kept, r when the times to live were renewed, n:<node> its newest number
-- KEYS[3] result   {group}:i:<message id>     with %25 for % and %7D for }; only looked at if ARGV[7] is more than 0
--
-- ARGV[1] channel, which is {group} with the prefix
-- ARGV[2] data, as it goes to clients
-- ARGV[3] what is known of it, as JSON without the brackets: "kind","sender" or null,["excluded"],"id"
-- ARGV[4] a random text, the epoch if the group has none
-- ARGV[5] node: a random text of whoever publishes
-- ARGV[6] number: counts up for this node; the same one again is the same message
-- ARGV[7] milliseconds for which the message id is remembered (0: not at all)
-- ARGV[8] 1: keep it, 0: only hand it on
-- ARGV[9], [10], [11] messages, bytes and milliseconds that the group keeps
-- ARGV[12] the time in milliseconds; empty: the server's
--
-- Returns {epoch, offset or 0, nonce, nonce of the one before, time, 1 if it is new}.

local window = tonumber(ARGV[7] or '0')
local keep = (ARGV[8] or '1') == '1'
local most, bytes, age = tonumber(ARGV[9] or '100'), tonumber(ARGV[10] or '1048576'), tonumber(ARGV[11] or '600000')
local nonce = ARGV[6] .. '-' .. ARGV[5]

if window > 0 then
  local known = redis.call('GET', KEYS[3])
  if known then
    local result = cjson.decode(known)
    result[6] = 0
    return result
  end
end

local now = tonumber(ARGV[12] or '')
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local stamp = string.format('%d', now)

if not keep then
  redis.call('PUBLISH', ARGV[1], '[0,"","' .. nonce .. '","",' .. stamp .. ',' .. ARGV[3] .. ']\n' .. ARGV[2])
  local result = {'', 0, nonce, '', now, 1}
  if window > 0 then redis.call('SET', KEYS[3], cjson.encode(result), 'PX', window) end
  return result
end

local field = 'n:' .. ARGV[5]
local meta = redis.call('HMGET', KEYS[2], 'e', 'o', 'l', 'c', 'f', 'r', field)
local epoch, offset, last = meta[1], tonumber(meta[2] or '0'), meta[3] or ''
local total, before, renewed = tonumber(meta[4] or '0'), tonumber(meta[5] or '0'), tonumber(meta[6] or '0')
if not epoch then
  -- Nobody knows what the entries of a stream without its meta were numbered by. (A script that has written
  -- is not stopped by a full memory any more: so nothing is written for nothing.)
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
  epoch = ARGV[4]
elseif meta[7] and tonumber(meta[7]) >= tonumber(ARGV[6]) then
  -- It was done, and the answer was lost: say again what was said.
  local at = '+'
  while true do
    local entries = redis.call('XREVRANGE', KEYS[1], at, '-', 'COUNT', 100)
    for _, entry in ipairs(entries) do
      local header = cjson.decode(string.match(entry[2][2], '^[^\n]*'))
      if header[3] == nonce then return {header[2], header[1], nonce, header[4], header[5], 0} end
    end
    if #entries < 100 then return {epoch, 0, nonce, '', now, 0} end -- it is not kept any more
    at = '(' .. entries[100][1]
  end
end

offset = offset + 1
local number = string.format('%d', offset)
local ever = meta[4] or '0'
local payload = '[' .. number .. ',"' .. epoch .. '","' .. nonce .. '","' .. last .. '",' .. stamp .. ',' .. ARGV[3]
  .. ']\n' .. ARGV[2]
redis.call('XADD', KEYS[1], 'MAXLEN', most, number .. '-0', 'm', payload, 'c', ever)
total = total + #ARGV[2]
local first = meta[5] or '0'
while total - before > bytes do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  before = oldest and tonumber(oldest[2][4]) or total
  first = string.format('%d', before)
  if total - before > bytes then redis.call('XDEL', KEYS[1], oldest[1]) end
end
local renew = now - renewed > age / 4 or now < renewed
redis.call('HSET', KEYS[2], 'e', epoch, 'o', number, 'l', nonce, 'c', string.format('%d', total),
  'f', first, 'r', renew and stamp or meta[6] or '0', field, ARGV[6])
if renew then
  redis.call('PEXPIRE', KEYS[1], math.ceil(age * 1.5))
  redis.call('PEXPIRE', KEYS[2], math.ceil(age * 3 + 3600000))
  if redis.call('HLEN', KEYS[2]) > 200 then
    -- Nodes come and go; the marks of those that have gone are of no use.
    for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
      if string.sub(name, 1, 2) == 'n:' and name ~= field then redis.call('HDEL', KEYS[2], name) end
    end
  end
end
redis.call('PUBLISH', ARGV[1], payload)
local result = {epoch, offset, nonce, last, now, 1}
if window > 0 then redis.call('SET', KEYS[3], cjson.encode(result), 'PX', window) end
return result
