-- Tells whoever listens of a claimed run as it is now, with what its events are to say from here on.
-- ARGV: id, epoch, nonce, what to say of it: see launch.run_events
-- Returns OK | LOST | ENDED
local id, epoch, nonce, brief = unpack(ARGV)
local refused = refusal(id, epoch, nonce)
if refused then
  return refused
end
redis.call('HSET', run_key(id), 'brief', brief)
tell(id, {EVENT_OF[redis.call('HGET', run_key(id), 'state')]}, '', now())
return 'OK'
