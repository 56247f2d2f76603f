-- Add to buckets what was taken from them. A bucket is what is owed, and since when (a leaky bucket, as in
-- nexios_trio.security.buckets); one that owes nothing is not there.
--
-- KEYS[i] bucket, a string: units owed, a space, the POSIX time in seconds at which they were
-- ARGV[1] the time in milliseconds; empty: the server's
-- ARGV[3i-1], [3i], [3i+1] what was taken since the node was here last, units per second that flow off, and what
--   would be owed by now if nothing but that had been taken
--
-- Returns what is owed to each now, as text.

local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
else
  now = tonumber(ARGV[1]) / 1000
end

local owed = {}
for i, key in ipairs(KEYS) do
  local taken, rate, own = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  -- What is none of ours, by its type or by what it says, is written over.
  local note = redis.pcall('GET', key)
  local debt, at = string.match(type(note) == 'string' and note or '', '^(%S+) (%S+)$')
  local since = math.max(0, now - (tonumber(at) or now))
  -- Some of it has flowed off while it was taken, so it is not taken all at once, now.
  local owing = math.max((tonumber(debt) or 0) - since * rate + taken, own)
  local idle = math.min(math.ceil(owing / rate * 1000) + 1, 1e12)
  owed[i] = string.format('%.17g', owing)
  redis.call('SET', key, string.format('%.17g %.17g', owing, now), 'PX', string.format('%d', idle))
end
return owed
