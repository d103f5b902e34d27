-- Deletes a queue that holds no runs; those that have ended stay.
-- ARGV: queue
-- Returns OK | GONE | INUSE <how many>
local queue = ARGV[1]
if redis.call('EXISTS', queue_key(queue)) == 0 then
  return 'GONE'
end
local inside = 0
for _, set in ipairs({'waiting', 'held', 'delayed', 'active'}) do
  inside = inside + redis.call('ZCARD', queue_key(queue, set))
end
if inside > 0 then
  return 'INUSE ' .. inside
end
redis.call('DEL', queue_key(queue))
redis.call('SREM', P .. 'queues', queue)
for _, counter in ipairs(redis.call('HKEYS', P .. 'stats')) do
  if string.match(counter, '^%w+|([^|]+)') == queue then
    redis.call('HDEL', P .. 'stats', counter)
  end
end
return 'OK'
