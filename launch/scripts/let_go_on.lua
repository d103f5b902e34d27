-- Lets a held run wait in line again, at its old place.
-- ARGV: id, message
-- Returns OK | GONE | NOTHELD
local id, bell = unpack(ARGV)
local key = run_key(id)
local queue = redis.call('HGET', key, 'queue')
if not queue then
  return 'GONE'
end
if redis.call('ZREM', queue_key(queue, 'held'), id) == 0 then
  return 'NOTHELD'
end
redis.call('HDEL', key, 'held_by')
wait_in_line(id, queue, bell)
return 'OK'
