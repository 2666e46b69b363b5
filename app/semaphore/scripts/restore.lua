-- restore.lua: write leases that other nodes hold and this one lacks.
--
-- KEYS[1] slots:<semaphore>   ARGV[1] prefix of leases   ARGV[2] prefix of reservations
-- ARGV[3] 1: this node is known to have a record, 0: to have none
-- ARGV[4] length   ARGV[5] longest
-- ARGV[6...] slot, token, life of the lease in ms, of the reservation (below 1: claimed), holder, slot, ...
--
-- returns how many leases were written; -1, and nothing is written, if the record came or went meanwhile.
-- A slot that is held here, and a token that has a lease here, are left alone. A reservation is written without the
-- instant of its grant, which counts as long ago.

if redis.call('EXISTS', KEYS[1]) ~= tonumber(ARGV[3]) then return -1 end

local function live(token)
  return token and redis.call('EXISTS', ARGV[1] .. token) == 1
end

-- What these tokens left in the record is dead, and would come alive with their leases: two slots for one pod.
-- Before anything is written: then such an entry may belong to another one of them.
local named, entries = {}, redis.call('HGETALL', KEYS[1])
for i = 7, #ARGV, 5 do named[ARGV[i]] = true end
for i = 1, #entries, 2 do
  local slot, token = entries[i], entries[i + 1]
  if tonumber(slot) and named[token] and not live(token) then redis.call('HDEL', KEYS[1], slot) end
end

local known, written = redis.call('HMGET', KEYS[1], 'bound', 'longest'), 0
local bound, longest = tonumber(known[1] or 0), math.max(tonumber(known[2] or 0), tonumber(ARGV[5]))
for i = 6, #ARGV, 5 do
  local slot, token, left, unclaimed, holder = unpack(ARGV, i, i + 4)
  if not live(redis.call('HGET', KEYS[1], slot)) and not live(token) then
    redis.call('HSET', KEYS[1], slot, token)
    redis.call('SET', ARGV[1] .. token, holder, 'PX', left)
    if tonumber(unclaimed) > 0 then
      redis.call('SET', ARGV[2] .. token, '', 'PX', unclaimed)
    end
    bound = math.max(bound, tonumber(slot) + 1)
    written = written + 1
  end
end
redis.call('HSET', KEYS[1], 'length', ARGV[4], 'bound', bound, 'longest', longest, 'touched', redis.call('TIME')[1])
return written
