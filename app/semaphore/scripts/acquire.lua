-- acquire.lua: take a slot of a semaphore for a token, any free one or exactly one.
--
-- KEYS[1] slots:<semaphore>       the record: slot -> token, `length`, `touched`, `bound`, `longest`
-- KEYS[2] lease:<token>           KEYS[3] reservation:<token>
-- ARGV[1] token                   ARGV[2] length, 1 or more
-- ARGV[3] life of the lease, ms   ARGV[4] holder, JSON
-- ARGV[5] its longest life, ms    ARGV[6] 1: found the semaphore if there is no record
-- ARGV[7] the slot, or -1: any    ARGV[8] any: where to begin to look
-- ARGV[9] 1: the token may have had a slot before, and its pod was admitted long since
--
-- returns {'UNKNOWN'}                  no record, nothing written
--       | {'GRANTED', slot}            written now, or held by this token before; with ARGV[9] its reservation has the
--                                    life asked for, if it still is one
--       | {'TAKEN'}                    the slot asked for is held by another token
--       | {'FULL', held, unclaimed, holder, ...}
--                                    none is free; the holders of the first 20 slots, and how many have not renewed
--
-- `bound` is one more than the highest slot ever written: leases at or past the length are looked for only
-- when there may be any. An entry whose lease is dead counts as free and is overwritten. `longest` is the longest
-- life that any claim to this semaphore has named: no lease can rightly have more left. The reservation says when an
-- admission was granted the slot, in ms of this node's clock, for recent.lua; nothing but a grant writes that.

local record, lease, reservation = KEYS[1], KEYS[2], KEYS[3]
local token, length, holder = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local exact, start = tonumber(ARGV[7]), tonumber(ARGV[8])
local leases, reservations = string.sub(lease, 1, -#token - 1), string.sub(reservation, 1, -#token - 1)

-- Lua 5.1 unpacks some thousands of values at most, and a command of a thousand keys is long enough.
local FIRST_BATCH, LARGEST_BATCH, SHOWN = 4, 1024, 20
-- The first four batches. So many leases are looked at one by one, whatever lies behind them in one go.
local CLOSELY = 340

if redis.call('EXISTS', record) == 0 and ARGV[6] ~= '1' then
  return {'UNKNOWN'}
end

local known = redis.call('HMGET', record, 'bound', 'longest')
local bound, longest = tonumber(known[1] or 0), math.max(tonumber(known[2] or 0), tonumber(ARGV[5]))

-- Whether the lease of another token lives here. One that has more left than any ever had is cut down: somebody
-- stretched it, which no ACL can forbid, or this node's clock was set back. It would keep its slot for too long.
local function live(other)
  local left = redis.call('PTTL', leases .. other)
  if left == -1 or left > longest then
    redis.call('PEXPIRE', leases .. other, longest)
    redis.call('PEXPIRE', reservations .. other, longest, 'LT')
  end
  return left ~= -2
end

-- An entry that the token left in the record is dead, and would come alive with its lease: two slots for one pod.
local function forget_entries()
  local entries = redis.call('HGETALL', record)
  for i = 1, #entries, 2 do
    if entries[i + 1] == token and tonumber(entries[i]) then redis.call('HDEL', record, entries[i]) end
  end
end

local function grant(slot)
  local now = redis.call('TIME')
  local granted = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
  if ARGV[9] == '1' then
    forget_entries()
    granted = ''  -- by no admission: its pod may have been copied since
  end
  redis.call('SET', lease, holder, 'PX', ARGV[3])
  redis.call('SET', reservation, granted, 'PX', ARGV[3])
  redis.call('HSET', record, slot, token, 'length', length, 'touched', now[1],
    'bound', math.max(bound, slot + 1), 'longest', longest)
  return {'GRANTED', slot}
end

-- Who asks for a pod that was admitted before goes by the answer: what is about to lapse must not be taken for granted.
-- Only a reservation, for a lease that a sidecar has renewed is the sidecar's.
local function prolong()
  if redis.call('PEXPIRE', reservation, ARGV[3]) == 1 then
    redis.call('PEXPIRE', lease, ARGV[3])
    redis.call('HSET', record, 'longest', longest, 'touched', redis.call('TIME')[1])
  end
end

local function slot_held()
  if redis.call('EXISTS', lease) == 0 then return nil end
  local entries = redis.call('HGETALL', record)
  for i = 1, #entries, 2 do
    if entries[i + 1] == token and tonumber(entries[i]) then return tonumber(entries[i]) end
  end
end

-- After a length was reduced: how many leases live here in total if some live at or past the length, else nil.
local function held_beyond()
  if bound <= length then return nil end
  local held, beyond, entries = 0, false, redis.call('HGETALL', record)
  for i = 1, #entries, 2 do
    local slot = tonumber(entries[i])
    if slot and live(entries[i + 1]) then
      held = held + 1
      beyond = beyond or slot >= length
    elseif slot and slot >= length then
      redis.call('HDEL', record, entries[i])
    end
  end
  if beyond then return held end
  bound = length
  redis.call('HSET', record, 'bound', bound)
end

-- The first free one of some slots, all of which have tokens to look up; false entries were never held.
local function first_free_of(slots, tokens)
  for i, slot in ipairs(slots) do
    if not (tokens[i] and live(tokens[i])) then return slot end
  end
end

-- Most often the first few decide. A long full stretch is passed by with one EXISTS a batch.
local function all_live(tokens)
  local keys = {}
  for i, other in ipairs(tokens) do
    if not other then return false end
    keys[i] = leases .. other
  end
  return redis.call('EXISTS', unpack(keys)) == #keys
end

local function first_free()
  local at, batch = 0, FIRST_BATCH
  while at < length do
    local slots = {}
    for i = 1, math.min(batch, length - at) do slots[i] = (start + at + i - 1) % length end
    local tokens = redis.call('HMGET', record, unpack(slots))
    if at < CLOSELY or not all_live(tokens) then
      local slot = first_free_of(slots, tokens)
      if slot then return slot end
    end
    at = at + #slots
    batch = math.min(batch * 4, LARGEST_BATCH)
  end
end

local function full(held)
  local slots, others, keys, unclaimed = {}, {}, {}, {}
  -- Those past the length as well: after it was reduced they may be all there are.
  for i = 1, math.min(math.max(length, bound), SHOWN) do slots[i] = i - 1 end
  for _, other in ipairs(redis.call('HMGET', record, unpack(slots))) do
    if other then
      others[#others + 1] = other
      keys[#keys + 1] = leases .. other
    end
  end
  local answer = {'FULL', held, 0}
  if #keys == 0 then return answer end
  for i, value in ipairs(redis.call('MGET', unpack(keys))) do
    if value then
      answer[#answer + 1] = value
      unclaimed[#unclaimed + 1] = reservations .. others[i]
    end
  end
  if #unclaimed > 0 then answer[3] = redis.call('EXISTS', unpack(unclaimed)) end
  return answer
end

local before = slot_held()
if before then
  if ARGV[9] == '1' then prolong() end
  return {'GRANTED', before}
end
-- It has a slot of another semaphore: who knows a pod's token must not take its lease by a pod of the same token.
if redis.call('EXISTS', lease) == 1 then
  if exact >= 0 then return {'TAKEN'} end
  return {'FULL', 0, 0}
end

local held = held_beyond()
if held and held >= length then
  if exact >= 0 then return {'TAKEN'} end
  return full(held)
end

if exact >= 0 then
  local other = redis.call('HGET', record, exact)
  if other and live(other) then return {'TAKEN'} end
  return grant(exact)
end

local slot = first_free()
if slot then return grant(slot) end
return full(length)
