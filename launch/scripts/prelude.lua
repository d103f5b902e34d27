-- What every script begins with. Keys, all under "launch:":
--   run:<id>            hash    the record: see launch.models.RunRecord, one field each, nested ones as JSON
--   run:<id>:log        stream  what the job writes: s (stream), t (text); made only after the claim
--   run:<id>:events     stream  its life: state, attempt, note, at; made only after the claim
--   queue:<q>           hash    spec (JSON), paused, max_concurrent; config:, template_variables: and
--                               overrides:<version> (JSON)
--   queue:<q>:waiting   zset    score = priority class * 2^50 + place; places are 2^16 apart
--   queue:<q>:held      zset    taken out of the order by a user; keeps its score
--   queue:<q>:delayed   zset    by the time their pause before a retry ends
--   queue:<q>:active    zset    claimed runs by time of claim
--   queue:<q>:finished  zset    ended runs by time of end
--   stats               hash    counters that only grow: see launch.metrics
--   archive             hash    ended runs that have left Redis: id -> digest of their document, those of its blobs
--   deleted             zset    versions of jobs (JSON) by the time they were deleted: their blobs outlive them a while
--   agents              zset    agent incarnations by time of last heartbeat
--   agent:<id>          hash    what it said of itself
--   token:<sha256>      hash    a tracking key's run and attempt
--   claim:<nonce>       string  the run a claim was answered with, for a minute
--   turn:<duty>         string  the agent whose turn it is, for a few seconds
--   notified:<hook>     string  how far a hook has been told of ended runs (JSON)
--   seq                 string  counts runs
--   artifact-key        string  what the server asks of whoever reads or writes blobs; jobs never see it
-- Only Redis' clock counts, so that no machine's own can make a run look dead. Numbers go out through %.0f and %.6f:
-- Lua's own conversion keeps 14 digits, fewer than a score has.

local P = 'launch:'

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

local function run_key(id)
  return P .. 'run:' .. id
end

local function queue_key(queue, set)
  if set then
    return P .. 'queue:' .. queue .. ':' .. set
  end
  return P .. 'queue:' .. queue
end

-- Sets fields of a hash from field and value in turn; an empty value deletes the field.
local function set_fields(key, args, first)
  for i = first, #args, 2 do
    if args[i + 1] == '' then
      redis.call('HDEL', key, args[i])
    else
      redis.call('HSET', key, args[i], args[i + 1])
    end
  end
end

-- Adds to a counter: its name and labels with "|" between them.
local function count(counter, by)
  redis.call('HINCRBY', P .. 'stats', counter, by or 1)
end

-- Adds a span of time to a histogram: one counter for each of launch.metrics.SPAN_BOUNDS, and the sum.
local BOUNDS = {'0.1', '0.5', '1', '5', '15', '60', '300', '1800', '3600', '21600', '86400', '604800', '+Inf'}
local function observe(histogram, seconds)
  for _, bound in ipairs(BOUNDS) do
    if bound == '+Inf' or seconds <= tonumber(bound) then
      count(histogram .. '|' .. bound)
      break
    end
  end
  redis.call('HINCRBYFLOAT', P .. 'stats', histogram .. '|sum', stamp(math.max(0, seconds)))
end

local function wake(message)
  redis.call('PUBLISH', P .. 'wake', message)
end

-- Notes what happened to a run, and tells whoever listens: as the state's own event, or as others, or (none) not at all.
-- Returns how many listen.
-- As Celery counts, a custom state (the event's name) outranks STARTED and REVOKED, but neither SUCCESS nor FAILURE; of
-- two custom ones the later counts.
local EVENT_OF = {queued = 'retried', building = 'building', starting = 'starting', running = 'running',
  finished = 'succeeded', failed = 'failed', stopped = 'stopped', crashed = 'crashed'}
local tell -- in run_events.lua
local function emit(id, state, note, at, events)
  local attempt = redis.call('HGET', run_key(id), 'attempt') or '0'
  redis.call('XADD', run_key(id) .. ':events', 'MAXLEN', '~', 500, '*',
    'state', state, 'attempt', attempt, 'note', note, 'at', stamp(at))
  return tell(id, events or {EVENT_OF[state]}, note, at)
end

-- Returns nil when the claim named by epoch and nonce is still the run's, else why a write is refused.
local function refusal(id, epoch, nonce)
  local r = redis.call('HMGET', run_key(id), 'epoch', 'nonce', 'ended_at')
  if r[1] ~= epoch or r[2] ~= nonce then
    return 'LOST'
  end
  return r[3] and 'ENDED' or nil
end

-- The same for a write that gives the claim up: said again, its answer having been lost, it has been done.
local function refusal_to_give_up(id, epoch, nonce, how)
  if redis.call('HGET', run_key(id), 'given_up') == nonce .. ' ' .. how then
    return 'OK'
  end
  local refused = refusal(id, epoch, nonce)
  if not refused then
    redis.call('HSET', run_key(id), 'given_up', nonce .. ' ' .. how)
  end
  return refused
end

local function revoke_tokens(id)
  local tokens = redis.call('HGET', run_key(id), 'tokens')
  if tokens then
    for token in string.gmatch(tokens, '%x+') do
      redis.call('DEL', P .. 'token:' .. token)
    end
    redis.call('HDEL', run_key(id), 'tokens')
  end
end

local function drop_bell(queue)
  -- One message fewer for one run fewer. Which one does not matter, only that it is one of ours; a foreign one at the
  -- end is left, and the reconciler takes away the surplus.
  local last = redis.call('LINDEX', 'launch.' .. queue, -1)
  if last and string.find(last, '"recorded":1', 1, true) then
    redis.call('RPOP', 'launch.' .. queue)
  end
end

local function wait_in_line(id, queue, bell)
  redis.call('ZADD', queue_key(queue, 'waiting'), redis.call('HGET', run_key(id), 'score'), id)
  redis.call('LPUSH', 'launch.' .. queue, bell)
end

-- Takes a claimed run back out of its agent's hands.
local function disown(id, queue)
  redis.call('ZREM', queue_key(queue, 'active'), id)
  redis.call('HDEL', run_key(id), 'agent', 'locality', 'nonce', 'handle', 'image', 'image_digest', 'started_at', 'released_at', 'submitting')
  revoke_tokens(id)
end

local function end_run(id, queue, state, cause, at)
  local key = run_key(id)
  redis.call('HSET', key, 'state', state, 'cause', cause, 'ended_at', stamp(at))
  count('ended|' .. queue .. '|' .. state .. '|' .. cjson.decode(cause).kind)
  local started_at = redis.call('HGET', key, 'started_at')
  if started_at then
    observe('duration|' .. queue, at - tonumber(started_at))
  end
  redis.call('HDEL', key, 'note', 'held_by', 'due_at')
  redis.call('ZREM', queue_key(queue, 'active'), id)
  redis.call('ZADD', queue_key(queue, 'finished'), at, id)
  revoke_tokens(id)
end

-- Ends a run that somebody has asked to stop and that is about to go back to its queue; returns whether it was so.
local function ends_by_stop(id, queue)
  local stop = redis.call('HGET', run_key(id), 'stop')
  if not stop then
    return false
  end
  local sentence = 'Stopped by ' .. cjson.decode(stop).by .. ' before it started again.'
  local at = now()
  end_run(id, queue, 'stopped', cjson.encode({kind = 'stopped', message = sentence}), at)
  emit(id, 'stopped', sentence, at)
  wake('queue ' .. queue)
  return true
end
