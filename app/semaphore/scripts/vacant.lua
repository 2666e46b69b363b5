-- vacant.lua: which of some semaphores may have a slot to give; bounded, so that nobody waits long for it. Looks only,
-- and decides nothing.
--
-- KEYS[1...] slots:<semaphore>   ARGV[1] prefix of leases   ARGV[2] how many slots to look at
-- ARGV[3...] the length of each semaphore; all of them together are no more than the slots to look at, or it is one
-- returns the numbers, from 1 on, of those with fewer live leases than their length, or without a record, and of those
--         that it could not look at for long enough to tell; never one of length 0
--
-- Of each semaphore it looks at as many slots as its length, whatever the others are like: where none was ever held past
-- the length that is enough. What the lengths leave is for those with a greater `bound`, the first ones first. A pod may
-- bring any length, and leave that behind.

local BATCH = 1000  -- Lua 5.1 unpacks some thousands of values at most

local leases, spare = ARGV[1], tonumber(ARGV[2])
for i = 1, #KEYS do spare = spare - tonumber(ARGV[i + 2]) end

local function live(record, from, last)
  local slots, keys = {}, {}
  for slot = from, last do slots[#slots + 1] = slot end
  for _, token in ipairs(redis.call('HMGET', record, unpack(slots))) do
    if token then keys[#keys + 1] = leases .. token end
  end
  return #keys > 0 and redis.call('EXISTS', unpack(keys)) or 0
end

local function is_full(record, length)
  local bound = tonumber(redis.call('HGET', record, 'bound') or 0)
  -- Slots from the bound on were never held, so with a bound below the length one is free.
  if bound < length then return false end
  local held, at = 0, 0
  while held < length and at < bound do
    local room = at < length and length - at or spare
    if room <= 0 then return false end
    -- No more at once than can be needed: of most full semaphores the first slots decide.
    local count = math.min(room, length - held, bound - at, BATCH)
    if at >= length then spare = spare - count end
    held = held + live(record, at, at + count - 1)
    at = at + count
  end
  return held >= length
end

local answer = {}
for i, record in ipairs(KEYS) do
  local length = tonumber(ARGV[i + 2])
  if length > 0 and not is_full(record, length) then answer[#answer + 1] = i end
end
return answer
