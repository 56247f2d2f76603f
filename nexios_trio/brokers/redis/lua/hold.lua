-- Hold places, or renew them.
--
-- KEYS[i] a zset: who holds a place -> when the lease of it ends, in milliseconds
-- ARGV[1] the time in milliseconds; empty: the server's
-- ARGV[2] milliseconds of a lease
-- ARGV[3] how many places there are; 0: no matter how many, since they are held already
-- ARGV[3 + i] who
--
-- Returns 1, or 0 at the first that others have all places of.

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local lease, most = tonumber(ARGV[2]), tonumber(ARGV[3])

-- Of many that are renewed, one whose key others have spoilt is to keep no other from it.
local call = most > 0 and redis.call or redis.pcall

for i, key in ipairs(KEYS) do
  local who = ARGV[3 + i]
  -- First, since it needs no memory: when that is full, the rest of a script that has written is let through.
  call('PEXPIRE', key, lease, 'GT') -- other nodes' leases may be longer
  call('ZREMRANGEBYSCORE', key, '-inf', now)
  if most > 0 and not call('ZSCORE', key, who) and call('ZCARD', key) >= most then return 0 end
  call('ZADD', key, now + lease, who)
  if call('PTTL', key) == -1 then call('PEXPIRE', key, lease) end
end
return 1
