-- Notes that wandb.init was called, or the config changed.
-- The first call of an attempt begins a new history, unless the script asked to resume; each later one may come from
-- another process or a second wandb.init, and gets a number of its own, so that its rows are told from the others'.
-- ARGV: id, attempt, config (JSON; "" = leave it)
-- Returns the writer's number, or -1 when the attempt is over or superseded
local id, attempt, config = unpack(ARGV)
if not may_write(id, attempt) then
  return -1
end
local key = run_key(id)
local r = redis.call('HMGET', key, 'tracked', 'resumed', 'writers')
if r[1] ~= '1' and r[2] ~= attempt then
  for writer = 0, tonumber(r[3] or '0') - 1 do
    redis.call('HDEL', key, 'rows:' .. writer)
  end
  redis.call('HDEL', key, 'writers', 'history_bytes', 'config', 'summary', 'reported_exit')
  redis.call('DEL', key .. ':history', key .. ':system')
end
redis.call('HSET', key, 'tracked', '1')
if config ~= '' then
  redis.call('HSET', key, 'config', config)
end
return redis.call('HINCRBY', key, 'writers', 1) - 1
