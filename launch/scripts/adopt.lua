-- Gives a run without a living owner to an agent. Its own run counts as such when the agent does not know it: the answer
-- to its claim was lost.
-- ARGV: id, new agent, locality, nonce, the epoch it was seen with, seconds after which an agent is dead,
--       the oldest heartbeat in seconds with which the adopter itself may judge
-- Returns OK | HELD (its owner lives, or it moved on meanwhile) | EARLY (the adopter has not lived long enough itself)
local id, agent, locality, nonce, epoch, dead_after, gap = unpack(ARGV)
local key = run_key(id)
local r = redis.call('HMGET', key, 'state', 'epoch', 'agent')
if r[2] ~= epoch or not (r[1] == 'building' or r[1] == 'starting' or r[1] == 'running') then
  return 'HELD'
end
local at = now()
if r[3] and r[3] ~= agent then
  local beat = redis.call('ZSCORE', P .. 'agents', r[3])
  if beat and at - tonumber(beat) < tonumber(dead_after) then
    return 'HELD'
  end
  -- A pause of Redis or a laptop's sleep stops all hearts at once. Only who has beaten without a gap since may judge.
  local own_beat = redis.call('ZSCORE', P .. 'agents', agent)
  local since = redis.call('HGET', P .. 'agent:' .. agent, 'unbroken_since')
  if not own_beat or at - tonumber(own_beat) > tonumber(gap) or not since
    or at - tonumber(since) < tonumber(dead_after) then
    return 'EARLY'
  end
end
redis.call('HINCRBY', key, 'epoch', 1)
count('adopted|' .. redis.call('HGET', key, 'queue'))
redis.call('HSET', key, 'agent', agent, 'locality', locality, 'nonce', nonce, 'worker', node_of(agent))
redis.call('HDEL', key, 'released_at')
emit(id, r[1], 'adopted by ' .. agent .. (r[3] and r[3] ~= agent and ' from ' .. r[3] or ''), at)
return 'OK'
