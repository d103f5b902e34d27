-- Puts a run whose attempt has failed back to its old place, for another attempt after a pause.
-- A run that somebody has asked to stop meanwhile ends here instead.
-- ARGV: id, epoch, nonce, message, note, pause in seconds, attempts so far (JSON), factor of its memory
-- Returns OK | LOST | ENDED
local id, epoch, nonce, bell, note, pause, attempts, memory_factor = unpack(ARGV)
local refused = refusal_to_give_up(id, epoch, nonce, 'retry')
if refused then
  return refused
end
local key = run_key(id)
local queue = redis.call('HGET', key, 'queue')
redis.call('HSET', key, 'attempts', attempts)
count('retried|' .. queue)
if not ends_by_stop(id, queue) then
  local at = now()
  redis.call('HSET', key, 'state', 'queued', 'note', note, 'memory_factor', memory_factor)
  disown(id, queue)
  if tonumber(pause) > 0 then
    redis.call('HSET', key, 'due_at', stamp(at + tonumber(pause)))
    redis.call('ZADD', queue_key(queue, 'delayed'), stamp(at + tonumber(pause)), id)
  else
    wait_in_line(id, queue, bell)
  end
  emit(id, 'queued', note, at)
  wake('queue ' .. queue)
end
return 'OK'
