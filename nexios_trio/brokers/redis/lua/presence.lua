-- Who is in a group, with leases; one script of four deeds, so that they share what they know.
--
-- ARGV[1] deed: enter, leave, refresh, sweep
-- ARGV[2] prefix of all keys
-- ARGV[3] the time in milliseconds; empty: the server's
-- ARGV[4] milliseconds of a lease
-- enter:   ARGV[5] group, [6] member id, [7] the member as JSON, [8] a random text, the epoch if there is none
--          returns the version of the newest event
-- leave:   ARGV[5] group, [6] member id, [7] milliseconds of grace
-- refresh: ARGV[5] group, [6]... member ids; returns those that are not there
-- sweep:   ARGV[5] how many groups at most; returns milliseconds until there is something to do, or -1
--
-- Keys of a group, {group} with the prefix before it:
--   :ph hash    member id -> order of coming, a space, the member as JSON
--   :pz zset    member id -> when its lease ends
--   :pu hash    user -> number of memberships
--   :pl hash    user -> who may be back within the grace: when that ends, whether somebody has come since
--   :pm hash    e epoch, v version (number of the newest event), c order of coming
--   :pe stream  the newest events, by version
-- and <prefix>due, a zset: group -> when something is due in it. Sweeping needs keys that it cannot name
-- beforehand, so this is for a single Redis.

local prefix = ARGV[2]
local now = tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local lease = tonumber(ARGV[4])
local due = prefix .. 'due'
local ttl = lease * 3 + 3600000

local function keys(group)
  local base = prefix .. '{' .. group .. '}'
  return {channel = base, ph = base .. ':ph', pz = base .. ':pz', pu = base .. ':pu', pl = base .. ':pl',
    pm = base .. ':pm', pe = base .. ':pe'}
end

local function renew(k)
  for _, name in ipairs({'ph', 'pz', 'pu', 'pl', 'pm', 'pe'}) do redis.call('PEXPIRE', k[name], ttl) end
end

local function tell(k, kind, member)
  local version = string.format('%d', redis.call('HINCRBY', k.pm, 'v', 1))
  local epoch = redis.call('HGET', k.pm, 'e')
  local payload = '{"type":"presence.' .. kind .. '","version":' .. version .. ',"epoch":"' .. epoch
    .. '","member":' .. member .. '}'
  redis.call('XADD', k.pe, 'MAXLEN', 100, version .. '-0', 'p', payload)
  redis.call('PUBLISH', k.channel, payload)
end

local function remove(k, id, value, at)
  local member = string.match(value, ' (.*)')
  local user = cjson.decode(member).user
  redis.call('HDEL', k.ph, id)
  redis.call('ZREM', k.pz, id)
  if redis.call('HINCRBY', k.pu, user, -1) <= 0 then
    redis.call('HDEL', k.pu, user)
    redis.call('HSET', k.pl, user, cmsgpack.pack({at, false, member}))
  end
end

-- Ended leases and graces; then note when there is something to do again.
local function settle(k, group)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', k.pz, '-inf', now)) do
    local value = redis.call('HGET', k.ph, id)
    if value then remove(k, id, value, now) else redis.call('ZREM', k.pz, id) end
  end
  local leaving, next = {}, nil
  local all = redis.call('HGETALL', k.pl)
  for at = 1, #all, 2 do
    local note = cmsgpack.unpack(all[at + 1])
    if note[1] <= now then
      table.insert(leaving, {note[1], all[at], note[3]})
    elseif not next or note[1] < next then
      next = note[1]
    end
  end
  table.sort(leaving, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  for _, entry in ipairs(leaving) do
    redis.call('HDEL', k.pl, entry[2])
    tell(k, 'leave', entry[3])
  end
  local first = redis.call('ZRANGE', k.pz, 0, 0, 'WITHSCORES')
  if first[2] and (not next or tonumber(first[2]) < next) then next = tonumber(first[2]) end
  if next then redis.call('ZADD', due, next, group) else redis.call('ZREM', due, group) end
end

if ARGV[1] == 'sweep' then
  for _, group in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, ARGV[5])) do
    local k = keys(group)
    if not pcall(settle, k, group) then
      -- Others have spoilt its keys: that is to keep nobody else from leaving. Taken out first, since a full
      -- memory lets through what makes room, and then the rest of a script.
      redis.call('ZREM', due, group)
      redis.call('ZADD', due, now + lease, group)
    end
  end
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  return first[2] and math.max(0, tonumber(first[2]) - now) or -1
end

local group = ARGV[5]
local k = keys(group)

if ARGV[1] == 'refresh' then
  -- First, since it needs no memory: when that is full, the rest of a script that has written is let through,
  -- and nobody who is here is told to have left.
  renew(k)
  local missing = {}
  for at = 6, #ARGV do
    if redis.call('HEXISTS', k.ph, ARGV[at]) == 1 then
      redis.call('ZADD', k.pz, now + lease, ARGV[at])
    else
      table.insert(missing, ARGV[at])
    end
  end
  return missing
end

local id = ARGV[6]
local value = redis.call('HGET', k.ph, id)

if ARGV[1] == 'leave' then
  if not value then return 0 end
  remove(k, id, value, now + tonumber(ARGV[7]))
  settle(k, group)
  return 1
end

if ARGV[1] == 'enter' then
  if value then
    redis.call('ZADD', k.pz, now + lease, id)
    return tonumber(redis.call('HGET', k.pm, 'v') or '0')
  end
  redis.call('HSETNX', k.pm, 'e', ARGV[8])
  local member = cjson.decode(ARGV[7])
  local order = string.format('%d', redis.call('HINCRBY', k.pm, 'c', 1))
  redis.call('HSET', k.ph, id, order .. ' ' .. ARGV[7])
  redis.call('ZADD', k.pz, now + lease, id)
  local devices = redis.call('HINCRBY', k.pu, member.user, 1)
  local back = redis.call('HGET', k.pl, member.user)
  local known = false
  if back then
    redis.call('HDEL', k.pl, member.user)
    local note = cmsgpack.unpack(back)
    -- Within the grace nobody was told of a leave; whoever came since does not know of this user.
    known = note[1] > now and not note[2] and cjson.decode(note[3]).metadata == member.metadata
    if note[1] <= now then tell(k, 'leave', note[3]) end
  end
  local all = redis.call('HGETALL', k.pl)
  for at = 1, #all, 2 do
    local note = cmsgpack.unpack(all[at + 1])
    if not note[2] then
      note[2] = true
      redis.call('HSET', k.pl, all[at], cmsgpack.pack(note))
    end
  end
  if devices == 1 and not known then tell(k, 'join', ARGV[7]) end
  renew(k)
  settle(k, group)
  return tonumber(redis.call('HGET', k.pm, 'v') or '0')
end

return redis.error_reply('ERR a deed is enter, leave, refresh or sweep, not ' .. ARGV[1])
