-- withdraw.lua: end a token's lease if it is still a mere reservation; once a sidecar has renewed it, it stays.
--
-- KEYS[1] lease:<token>   KEYS[2] reservation:<token>
-- returns whether there was such a lease, 1 or 0

if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
return redis.call('UNLINK', KEYS[1], KEYS[2]) > 0 and 1 or 0
