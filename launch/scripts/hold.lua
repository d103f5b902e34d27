-- Takes a queued run out of its queue's order, until it is let go on.
-- ARGV: id, who
-- Returns OK | GONE | NOTQUEUED <state>
local id, by = unpack(ARGV)
local key = run_key(id)
local r = redis.call('HMGET', key, 'state', 'queue', 'score')
if not r[1] then
  return 'GONE'
end
if r[1] ~= 'queued' then
  return 'NOTQUEUED ' .. r[1]
end
if redis.call('ZREM', queue_key(r[2], 'waiting'), id) == 1 then
  drop_bell(r[2])
end
redis.call('ZREM', queue_key(r[2], 'delayed'), id)
redis.call('ZADD', queue_key(r[2], 'held'), r[3], id)
redis.call('HDEL', key, 'due_at')
redis.call('HSET', key, 'held_by', by)
return 'OK'
