-- Puts a claimed run back to its old place.
-- ARGV: id, epoch, nonce, message, note, whether the attempt counts (1|0)
-- A run that somebody has asked to stop meanwhile ends here instead.
-- Returns OK | LOST | ENDED
local id, epoch, nonce, bell, note, counts = unpack(ARGV)
local refused = refusal(id, epoch, nonce)
if refused then
  return refused
end
local key = run_key(id)
local queue = redis.call('HGET', key, 'queue')
if counts == '0' then
  redis.call('HINCRBY', key, 'attempt', -1)
end
local stop = redis.call('HGET', key, 'stop')
if stop then
  local sentence = 'Stopped by ' .. cjson.decode(stop).by .. ' before it started.'
  redis.call('ZREM', queue_key(queue, 'active'), id)
  end_run(id, queue, 'stopped', cjson.encode({kind = 'stopped', message = sentence}), now())
  emit(id, 'stopped', sentence, now())
  wake('queue ' .. queue)
  return 'OK'
end
redis.call('HSET', key, 'state', 'queued', 'note', note)
back_to_queue(id, queue, bell)
emit(id, 'queued', note, now())
wake('queue ' .. queue)
return 'OK'
