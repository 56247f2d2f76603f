-- Take from all of these buckets, or from none. A bucket is what is owed, and since when (a leaky bucket as in
-- nexios_trio.security.buckets); one that owes nothing is not there.
--
-- KEYS[i] bucket, a string: units owed, a space, the POSIX time in seconds at which they were
-- ARGV[1] the time in milliseconds; empty: the server's
-- ARGV[3i-1], [3i], [3i+1] amount, units per second, burst
--
-- Returns for each the seconds until the amount could be had, as text; all '0': they are taken.

local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
else
  now = tonumber(ARGV[1]) / 1000
end

local waits, owed, free = {}, {}, true
for i, key in ipairs(KEYS) do
  local amount, rate, burst = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local debt, at = string.match(redis.call('GET', key) or '', '^(%S+) (%S+)$')
  local owing = math.max(0, (tonumber(debt) or 0) - (now - (tonumber(at) or now)) * rate)
  owed[i] = owing + amount
  if owed[i] > burst * (1 + 1e-9) then
    free = false
    waits[i] = string.format('%.9f', math.max(1e-6, (owed[i] - burst) / rate))
  else
    waits[i] = '0'
  end
end

if free then
  for i, key in ipairs(KEYS) do
    local idle = math.ceil(owed[i] / tonumber(ARGV[3 * i]) * 1000) + 1
    redis.call('SET', key, string.format('%.17g %.17g', owed[i], now), 'PX', string.format('%d', idle))
  end
end
return waits
