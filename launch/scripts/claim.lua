-- Gives the head of a queue to an agent.
-- The same claim said again, its answer having been lost, is answered the same.
-- ARGV: queue, agent, locality, nonce, the newest schema the agent understands
-- Returns {RUN, id}, with HEARD at the end if anybody listens to its events | {EMPTY} | {BLOCKED, paused|limit|newer}
local queue, agent, locality, nonce, schema = unpack(ARGV)
local answered = redis.call('GET', P .. 'claim:' .. nonce)
if answered then
  return {'RUN', answered, is_heard() and 'HEARD' or nil}
end
local settings = redis.call('HMGET', queue_key(queue), 'paused', 'max_concurrent')
if settings[1] == '1' then
  return {'BLOCKED', 'paused'}
end
local active = queue_key(queue, 'active')
if settings[2] and settings[2] ~= '' and redis.call('ZCARD', active) >= tonumber(settings[2]) then
  return {'BLOCKED', 'limit'}
end
while true do
  local id = redis.call('ZRANGE', queue_key(queue, 'waiting'), 0, 0)[1]
  if not id then
    return {'EMPTY'}
  end
  local key = run_key(id)
  if tonumber(redis.call('HGET', key, 'schema') or '1') > tonumber(schema) then
    return {'BLOCKED', 'newer'}
  end
  redis.call('ZREM', queue_key(queue, 'waiting'), id)
  -- A place without a queued record is a leftover of a deleted one.
  if redis.call('HGET', key, 'state') == 'queued' then
    local at = now()
    redis.call('HINCRBY', key, 'epoch', 1)
    if redis.call('HINCRBY', key, 'attempt', 1) == 1 then
      observe('wait|' .. queue, at - tonumber(redis.call('HGET', key, 'created_at')))
    end
    redis.call('HSET', key, 'state', 'building', 'agent', agent, 'locality', locality, 'nonce', nonce,
      'claimed_at', stamp(at), 'worker', node_of(agent))
    redis.call('HDEL', key, 'log_cursor', 'log_bytes', 'tracked', 'note', 'timed_out_s')
    redis.call('ZADD', active, at, id)
    redis.call('SET', P .. 'claim:' .. nonce, id, 'EX', 60)
    local heard = emit(id, 'building', 'claimed by ' .. agent, at, {'received', 'building'})
    return {'RUN', id, heard > 0 and 'HEARD' or nil}
  end
end
