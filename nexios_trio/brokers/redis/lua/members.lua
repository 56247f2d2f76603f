-- Who is in a group now: {"order member-as-JSON", ...}, without those whose leases have ended; see presence.lua.
-- KEYS[1] :ph, KEYS[2] :pz; ARGV[1] the time in milliseconds, empty: the server's
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local ended = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do ended[id] = true end
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  if not ended[all[at]] then table.insert(found, all[at + 1]) end
end
return found
