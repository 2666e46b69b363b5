-- recent.lua: whether an admission has just given a token its slot, and no sidecar has claimed it yet.
--
-- KEYS[1] slots:<semaphore>   KEYS[2] lease:<token>   KEYS[3] reservation:<token>
-- ARGV[1] token   ARGV[2] slot   ARGV[3] how long ago it may be at most, ms
-- returns 1, or 0 if the slot is not this token's, its sidecar has renewed, or it was granted earlier
--
-- By the instant that acquire.lua has written, not by what is left: a reservation is prolonged as long as its pod
-- takes to start. One without an instant was written by a repair, or granted to a pod that had been admitted before.

if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local granted = tonumber(redis.call('GET', KEYS[3]) or '')
if not granted then return 0 end
local now = redis.call('TIME')
local age = now[1] * 1000 + math.floor(now[2] / 1000) - granted
-- In the future it is if this node's clock was set back: who knows how long ago that was.
return age >= 0 and age <= tonumber(ARGV[3]) and 1 or 0
