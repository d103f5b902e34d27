-- Lets a run whose pause has ended wait in line again, at its old place.
-- ARGV: id, queue, message
-- Returns OK | GONE (it is not paused any more)
local id, queue, bell = unpack(ARGV)
if redis.call('ZREM', queue_key(queue, 'delayed'), id) == 0 then
  return 'GONE'
end
redis.call('HDEL', run_key(id), 'due_at')
wait_in_line(id, queue, bell)
emit(id, 'queued', 'its pause is over', now(), {'sent'})
return 'OK'
