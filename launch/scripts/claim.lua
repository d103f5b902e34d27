-- Gives the head of a queue to an agent.
-- ARGV: queue, agent, locality ("" = not known yet), nonce
-- Returns {RUN, id} | {EMPTY} | {BLOCKED, paused|limit}
local queue, agent, locality, nonce = unpack(ARGV)
local settings = redis.call('HMGET', queue_key(queue), 'paused', 'max_concurrent')
if settings[1] == '1' then
  return {'BLOCKED', 'paused'}
end
local active = queue_key(queue, 'active')
if settings[2] and settings[2] ~= '' and redis.call('ZCARD', active) >= tonumber(settings[2]) then
  return {'BLOCKED', 'limit'}
end
while true do
  local head = redis.call('ZPOPMIN', queue_key(queue, 'waiting'))
  local id = head[1]
  if not id then
    return {'EMPTY'}
  end
  local key = run_key(id)
  -- A place without a queued record is a leftover of a deleted one.
  if redis.call('HGET', key, 'state') == 'queued' then
    local at = now()
    redis.call('HINCRBY', key, 'epoch', 1)
    redis.call('HINCRBY', key, 'attempt', 1)
    redis.call('HSET', key, 'state', 'building', 'agent', agent, 'locality', locality, 'nonce', nonce,
      'claimed_at', stamp(at))
    redis.call('HDEL', key, 'log_cursor', 'log_bytes', 'tracked', 'note')
    redis.call('ZADD', active, at, id)
    emit(id, 'building', 'claimed by ' .. agent, at)
    return {'RUN', id}
  end
end
