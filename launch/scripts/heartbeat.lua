-- ARGV: agent, longest gap in seconds that still counts as unbroken, what its event says (JSON), then field and value in
--       turn
-- Returns the time, and since when the agent's heart has beaten without a gap
local agent, gap = ARGV[1], tonumber(ARGV[2])
local at = now()
local key = P .. 'agent:' .. agent
local before = redis.call('ZSCORE', P .. 'agents', agent)
if not before or at - tonumber(before) > gap or redis.call('HEXISTS', key, 'unbroken_since') == 0 then
  redis.call('HSET', key, 'unbroken_since', stamp(at))
end
redis.call('ZADD', P .. 'agents', at, agent)
redis.call('ZREMRANGEBYSCORE', P .. 'agents', '-inf', at - 604800)
redis.call('HSET', key, unpack(ARGV, 4))
redis.call('EXPIRE', key, 604800)
tell_of_worker(before and 'heartbeat' or 'online', node_of(agent), ARGV[3], at)
return {stamp(at), redis.call('HGET', key, 'unbroken_since')}
