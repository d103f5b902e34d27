-- An agent that goes lets go of a run; its state stays, and the next agent adopts it at once.
-- ARGV: id, epoch, nonce
-- Returns OK | LOST | ENDED
local id, epoch, nonce = unpack(ARGV)
local refused = refusal_to_give_up(id, epoch, nonce, 'release')
if refused then
  return refused
end
local key = run_key(id)
local agent = redis.call('HGET', key, 'agent')
local at = now()
redis.call('HDEL', key, 'agent', 'nonce')
redis.call('HSET', key, 'released_at', stamp(at))
emit(id, redis.call('HGET', key, 'state'), 'released by ' .. agent, at, {})
wake('orphan ' .. id .. ' ' .. agent)
return 'OK'
