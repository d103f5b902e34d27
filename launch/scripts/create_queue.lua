-- ARGV: queue, spec (JSON), then field and value in turn
-- Returns OK | EXISTS
local key = queue_key(ARGV[1])
if redis.call('EXISTS', key) == 1 then
  return 'EXISTS'
end
redis.call('HSET', key, 'paused', '0', 'spec', unpack(ARGV, 2))
redis.call('SADD', P .. 'queues', ARGV[1])
return 'OK'
