-- Puts a claimed run back to its old place, because its target is away or its agent goes. The attempt does not count.
-- A run that somebody has asked to stop meanwhile ends here instead.
-- ARGV: id, epoch, nonce, message, note
-- Returns OK | LOST | ENDED
local id, epoch, nonce, bell, note = unpack(ARGV)
local refused = refusal_to_give_up(id, epoch, nonce, 'unclaim')
if refused then
  return refused
end
local key = run_key(id)
local queue = redis.call('HGET', key, 'queue')
redis.call('HINCRBY', key, 'attempt', -1)
count('unclaimed|' .. queue)
if not ends_by_stop(id, queue) then
  redis.call('HSET', key, 'state', 'queued', 'note', note)
  disown(id, queue)
  wait_in_line(id, queue, bell)
  emit(id, 'queued', note, now())
  wake('queue ' .. queue)
end
return 'OK'
