-- read.lua: what a node knows of a semaphore.
--
-- KEYS[1] slots:<semaphore>   ARGV[1] prefix of leases   ARGV[2] prefix of reservations
-- returns nothing if there is no record, else
--         {length, longest, slot, token, life of the lease in ms, of the reservation (below 1: claimed), holder,
--         slot, ...} with the slots whose leases live; none is said to have more left than the longest life.

local entries = redis.call('HGETALL', KEYS[1])
if #entries == 0 then return false end

local known = redis.call('HMGET', KEYS[1], 'length', 'longest')
local longest = tonumber(known[2] or 0)
local answer = {tonumber(known[1] or 0), longest}
for i = 1, #entries, 2 do
  local slot, token = tonumber(entries[i]), entries[i + 1]
  if slot then
    local left = redis.call('PTTL', ARGV[1] .. token)
    if left > 0 then
      answer[#answer + 1] = slot
      answer[#answer + 1] = token
      answer[#answer + 1] = math.min(left, longest)
      answer[#answer + 1] = math.min(redis.call('PTTL', ARGV[2] .. token), longest)
      answer[#answer + 1] = redis.call('GET', ARGV[1] .. token)
    end
  end
end
return answer
