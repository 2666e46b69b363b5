-- vacant.lua: which of some semaphores may have a slot to give. Looks only, and decides nothing.
--
-- KEYS[1...] slots:<semaphore>   ARGV[1] prefix of leases   ARGV[2...] the length of each semaphore
-- returns the numbers, from 1 on, of those with fewer live leases than their length, or without a record

local BATCH = 1000

local function live(record, from, last)
  local slots, keys = {}, {}
  for slot = from, last do slots[#slots + 1] = slot end
  for _, token in ipairs(redis.call('HMGET', record, unpack(slots))) do
    if token then keys[#keys + 1] = ARGV[1] .. token end
  end
  return #keys > 0 and redis.call('EXISTS', unpack(keys)) or 0
end

local answer = {}
for i, record in ipairs(KEYS) do
  local length, held = tonumber(ARGV[i + 1]), 0
  local bound = tonumber(redis.call('HGET', record, 'bound') or 0)
  -- Slots from the bound on were never held, so with a bound below the length one is free.
  if bound >= length then
    for from = 0, bound - 1, BATCH do
      held = held + live(record, from, math.min(from + BATCH, bound) - 1)
    end
  end
  if held < length then answer[#answer + 1] = i end
end
return answer
