-- prolong.lua: give a reservation more time; a lease that a sidecar has renewed is left as it is.
--
-- KEYS[1] lease:<token>   KEYS[2] reservation:<token>   ARGV[1] life of both from now on, ms
-- returns 0: there is no such lease   1: it is a reservation, and prolonged   2: a sidecar has renewed it

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('PEXPIRE', KEYS[2], ARGV[1]) == 0 then return 2 end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
