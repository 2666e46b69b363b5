-- collect.lua: whether a record can go: nobody holds a slot, and nothing was written for long; and remove it.
--
-- KEYS[1] slots:<semaphore>   ARGV[1] prefix of leases
-- ARGV[2] how long it must be untouched, in seconds   ARGV[3] 1: remove it, 0: look only
-- returns 1 if it can go, or there is none; 0 if not

local entries = redis.call('HGETALL', KEYS[1])
if #entries == 0 then return 1 end

local touched = tonumber(redis.call('HGET', KEYS[1], 'touched') or 0)
if tonumber(redis.call('TIME')[1]) - touched < tonumber(ARGV[2]) then return 0 end
for i = 1, #entries, 2 do
  if tonumber(entries[i]) and redis.call('EXISTS', ARGV[1] .. entries[i + 1]) == 1 then return 0 end
end
if ARGV[3] == '1' then redis.call('UNLINK', KEYS[1]) end
return 1
