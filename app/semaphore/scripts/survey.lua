-- survey.lua: what a node knows of some semaphores, for people and metrics; bounded, so that nobody waits long for it.
--
-- KEYS[1...] slots:<semaphore>   ARGV[1] prefix of leases   ARGV[2] prefix of reservations
-- ARGV[3] the first slot to look at in the first semaphore   ARGV[4] how many slots to look at, 1 to 1000
--
-- returns {next slot, record, ...} for as many semaphores as the slots suffice for, at least one; each record is
--         nothing if there is none, else {length, longest, slot, token, life of the lease in ms, of the reservation
--         (below 1: claimed), holder, slot, ...} with the slots whose leases live, as read.lua has them.
--         The last record goes on at the next slot, or is complete if that is -1.

local from, room = tonumber(ARGV[3]), tonumber(ARGV[4])
local answer = {-1}

-- Adds to `found` what lives in the slots `from` to `last`.
local function look(record, found, last)
  local slots = {}
  for slot = from, last do slots[#slots + 1] = slot end
  for i, token in ipairs(redis.call('HMGET', record, unpack(slots))) do
    local left = token and redis.call('PTTL', ARGV[1] .. token) or -2
    if left ~= -2 then
      if left == -1 then left = found[2] end
      found[#found + 1] = slots[i]
      found[#found + 1] = token
      found[#found + 1] = math.min(left, found[2])
      found[#found + 1] = math.min(redis.call('PTTL', ARGV[2] .. token), found[2])
      found[#found + 1] = redis.call('GET', ARGV[1] .. token)
    end
  end
end

for i, record in ipairs(KEYS) do
  if redis.call('EXISTS', record) == 0 then
    answer[i + 1] = false
  else
    local known = redis.call('HMGET', record, 'length', 'longest', 'bound')
    local bound = tonumber(known[3] or 0)
    local last = math.min(bound, from + room) - 1
    local found = {tonumber(known[1] or 0), tonumber(known[2] or 0)}
    if last >= from then look(record, found, last) end
    answer[i + 1] = found
    room = room - math.max(1, last - from + 1)
    if last + 1 < bound then
      answer[1] = last + 1
      return answer
    end
  end
  from = 0
  if room <= 0 then return answer end
end
return answer
