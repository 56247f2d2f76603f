-- What a group keeps, and where it ends; makes the numbering if there is none.
--
-- KEYS[1] stream, KEYS[2] meta, KEYS[3] presence meta   see publish.lua and presence.lua
-- ARGV[1] a random text, the epoch if the group has none
-- ARGV[2] milliseconds that the group keeps messages
-- ARGV[3] the time in milliseconds; empty: the server's
-- ARGV[4] 'since': all after the offset ARGV[5], until they are ARGV[6] entries or have ARGV[7] bytes;
--         'last': the last ARGV[6] (-1: all)
--
-- Returns {epoch, offset, nonce of the newest, time, {message, ...} oldest first, presence epoch, presence version,
-- 1 if there may be more}.

local now = tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local age = tonumber(ARGV[2])
local meta = redis.call('HMGET', KEYS[2], 'e', 'o', 'l')
local presence = redis.call('HMGET', KEYS[3], 'e', 'v')
local offset, version = tonumber(meta[2] or '0'), tonumber(presence[2] or '0')
if not offset or not version then
  return redis.error_reply('WRONGTYPE a number of this group is none')
end
local epoch = meta[1]
if not epoch then
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
  epoch = ARGV[1]
  redis.call('HSET', KEYS[2], 'e', epoch, 'o', '0')
end
-- Whoever reads may come back with what it read.
redis.call('PEXPIRE', KEYS[2], math.ceil(age * 3 + 3600000))
local payloads, full = {}, false
if ARGV[4] == 'since' then
  local left, room, after = tonumber(ARGV[6]), tonumber(ARGV[7]), '(' .. ARGV[5] .. '-0'
  repeat
    -- Few at a time, since each may be large.
    local entries = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', math.min(left, 20))
    for _, entry in ipairs(entries) do
      table.insert(payloads, entry[2][2])
      left, room, after = left - 1, room - #entry[2][2], '(' .. entry[1]
      full = left <= 0 or room <= 0
      if full then break end
    end
  until full or #entries == 0
elseif ARGV[6] ~= '0' then
  local entries
  if ARGV[6] == '-1' then
    entries = redis.call('XREVRANGE', KEYS[1], '+', '-')
  else
    entries = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[6])
  end
  for at = #entries, 1, -1 do table.insert(payloads, entries[at][2][2]) end
end
if presence[1] then redis.call('PEXPIRE', KEYS[3], math.ceil(age * 3 + 3600000)) end
return {epoch, offset, meta[3] or '', now, payloads, presence[1] or '', version, full and 1 or 0}
