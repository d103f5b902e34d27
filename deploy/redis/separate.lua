-- Makes a restored copy an installation of its own, so that it can live beside the original:
--
--   redis-cli -u "$(cat admin.url)" --eval deploy/redis/separate.lua
--
-- Run it before any agent or server of the copy starts. What was at work at the time of the backup has ended there,
-- `crashed`, cause `host_lost`: its job, its container and its key are the original's, which goes on with it. Without
-- this, agents of the copy would take the original's jobs for orphans of their own, follow them and remove them.
-- Returns how many runs that were.
local P = 'launch:'
local sentence = 'It was at work when this installation was copied, and goes on in the original.'
local t = redis.call('TIME')
local at = string.format('%.6f', tonumber(t[1]) + tonumber(t[2]) / 1e6)
local ended = 0
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local active = P .. 'queue:' .. queue .. ':active'
  for _, id in ipairs(redis.call('ZRANGE', active, 0, -1)) do
    local key = P .. 'run:' .. id
    redis.call('HSET', key, 'state', 'crashed', 'ended_at', at,
      'cause', cjson.encode({kind = 'host_lost', message = sentence}))
    redis.call('HDEL', key, 'agent', 'nonce', 'handle', 'note', 'tokens', 'stop')
    redis.call('XADD', key .. ':events', '*', 'state', 'crashed', 'attempt', redis.call('HGET', key, 'attempt') or '0',
      'note', sentence, 'at', at)
    redis.call('ZREM', active, id)
    redis.call('ZADD', P .. 'queue:' .. queue .. ':finished', at, id)
    ended = ended + 1
  end
end
for _, pattern in ipairs({'token:*', 'agent:*', 'claim:*', 'turn:*', 'notified:*'}) do
  for _, key in ipairs(redis.call('KEYS', P .. pattern)) do
    redis.call('DEL', key)
  end
end
-- The next that asks makes another: names at the targets begin with it.
redis.call('DEL', P .. 'installation', P .. 'artifact-key', P .. 'agents', P .. 'server')
return ended
