-- unclaimed.lua: how long a token's lease on a slot still is a mere reservation.
--
-- KEYS[1] slots:<semaphore>   KEYS[2] lease:<token>   KEYS[3] reservation:<token>
-- ARGV[1] token   ARGV[2] slot
-- returns the rest of the reservation in ms; -2 if the slot is not this token's, or its sidecar has renewed.

if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 0 then return -2 end
return redis.call('PTTL', KEYS[3])
