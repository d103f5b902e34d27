-- Gives a claimed run its next attempt at once: what became of the one whose submit was cut off cannot be known.
-- ARGV: id, epoch, nonce, attempts so far (JSON), note, the attempt it was seen at
-- Returns OK | LOST | ENDED
local id, epoch, nonce, attempts, note, seen = unpack(ARGV)
local refused = refusal(id, epoch, nonce)
if refused then
  return refused
end
local key = run_key(id)
if redis.call('HGET', key, 'attempt') == seen then
  redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HSET', key, 'attempts', attempts, 'state', 'building')
  redis.call('HDEL', key, 'submitting', 'log_cursor', 'log_bytes')
  revoke_tokens(id)
  emit(id, 'building', note, now())
end
return 'OK'
