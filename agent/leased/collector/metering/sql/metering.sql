-- SPDX-License-Identifier: Apache-2.0
--
-- Metering: from lease events to hourly usage, peaks and tasks, in SQL that DuckDB, Spark and PostgreSQL run unchanged.
--
-- Rule: integers only. Amounts are DECIMAL(38,0), cast before they are multiplied; an engine that would wrap instead of
-- raising is refused at its start. What is computed here equals economics.hourly, cell by cell (a property test).
-- Each statement is a SELECT; an engine makes a table, or a view, of the name above it. idiv(a, b) is the engine's
-- integer division of what is not negative; wide(a) is a, of a type in which its SUM does not end at 63 bits.
--
-- acts   one row per record that changes a lease: act 1 Allocated, 2 Renewed, 3 DrainNotified, 4 TeardownBegun,
--        5 Reclaimed, 6 Fenced, 7 Unfenced, 8 Voided (ref: the sequence of the grant), 9 Released. at_ns is when it took
--        effect on the boot clock, not later than sealed_ns, when it was sealed. terms stands for what is held by whom.
-- holds  what is held from record seq on, one row per allotment. (party_hi, party_lo) stands for who holds it, and as what.
-- lives  leases that are plain and began and ended within a block, one row per allotment: granted at record seq, torn down
--        and ended on the clock of that boot, in this order; released_ns where they ended in Released. Of these there are
--        no acts and no holds.
-- parties (party_hi, party_lo): kind, tier, priority, tenant and tag, each at least once. probe = 1: on no bill, and no task.
-- boots  (log, boot): its first and its last moment on its own clock. last = 1: the newest of its log.
-- eras   boot time [start_ns, end_ns) is labelled from label_ns on. final = 1: the last of its boot.
-- hours  every hour from the first label to the last.
-- others what no lease is behind, labelled already: what there was (pool 4) and operators' fences (pool 2).
-- Pools: 0 tenant, 1 teardown, 2 fenced, 4 provisioned.

-- name: again
-- Of the leases that were granted more than once, each after its end, each grant: from which record to before which. No node
-- does it, but nobody can know all the ids that there ever were: a chain with it verifies.
SELECT a.log, a.lease_hi, a.lease_lo, a.seq AS from_seq,
       LEAD(a.seq, 1, 9223372036854775807) OVER (PARTITION BY a.log, a.lease_hi, a.lease_lo ORDER BY a.seq) AS to_seq
FROM acts a
JOIN (
    SELECT log, lease_hi, lease_lo FROM acts
    GROUP BY log, lease_hi, lease_lo
    HAVING SUM(CASE WHEN act = 1 THEN 1 ELSE 0 END) > 1 OR MIN(seq) < MIN(CASE WHEN act = 1 THEN seq END)
) g ON g.log = a.log AND g.lease_hi = a.lease_hi AND g.lease_lo = a.lease_lo
WHERE a.act = 1

-- name: facts
-- Of each other grant of a lease: what happened to it, and whether it is plain: granted, torn down, reclaimed, all in one
-- boot. (log, granted_seq) stands for it.
SELECT log, lease_hi, lease_lo, MAX(seq) AS last_seq,
       MIN(CASE WHEN act = 1 THEN seq END) AS granted_seq,
       MIN(CASE WHEN act = 1 THEN boot END) AS granted_boot,
       MIN(CASE WHEN act = 1 THEN at_ns END) AS granted_ns,
       MIN(CASE WHEN act = 4 THEN seq END) AS torn_seq,
       MIN(CASE WHEN act = 4 THEN at_ns END) AS torn_ns,
       MIN(CASE WHEN act = 6 THEN seq END) AS fenced_seq,
       MIN(CASE WHEN act IN (5, 7) THEN seq END) AS ended_seq,
       MIN(CASE WHEN act IN (5, 7) THEN at_ns END) AS ended_ns,
       CASE WHEN SUM(CASE WHEN act = 1 THEN 1 ELSE 0 END) = 1
             AND SUM(CASE WHEN act = 4 THEN 1 ELSE 0 END) <= 1
             AND SUM(CASE WHEN act IN (5, 7) THEN 1 ELSE 0 END) = 1
             AND SUM(CASE WHEN act IN (6, 8) THEN 1 ELSE 0 END) = 0
             AND MIN(boot) = MAX(boot)
             AND MIN(CASE WHEN act IN (1, 2) THEN terms END) = MAX(CASE WHEN act IN (1, 2) THEN terms END)
             AND MIN(CASE WHEN act = 1 THEN seq END) = MIN(seq)
             AND MIN(CASE WHEN act IN (5, 7) THEN seq END) >= MAX(CASE WHEN act IN (2, 4) THEN seq ELSE 0 END)
            THEN 1 ELSE 0 END AS plain
FROM (
    SELECT a.log, a.lease_hi, a.lease_lo, a.seq, a.boot, a.act, a.at_ns, a.terms, COALESCE(g.from_seq, 0) AS turn
    FROM acts a
    LEFT JOIN again g ON g.log = a.log AND g.lease_hi = a.lease_hi AND g.lease_lo = a.lease_lo
         AND a.seq >= g.from_seq AND a.seq < g.to_seq
) t
GROUP BY log, lease_hi, lease_lo, turn

-- name: voids
-- The grants that were voided, by the first record that says so.
SELECT g.log, g.seq AS granted_seq, MIN(v.seq) AS void_seq
FROM acts v JOIN acts g ON g.log = v.log AND g.seq = v.ref AND g.boot = v.boot AND g.act = 1
WHERE v.act = 8
GROUP BY g.log, g.seq

-- name: knotty
-- The records of every other grant, with what decides whether they count.
SELECT a.log, a.seq, a.boot, a.act, a.at_ns, a.deadline_ns, a.terms,
       f.granted_seq, f.granted_boot, f.torn_seq, f.fenced_seq, f.ended_seq, v.void_seq,
       LAG(CASE WHEN a.act IN (1, 2) THEN a.terms END)
           OVER (PARTITION BY a.log, f.granted_seq, CASE WHEN a.act IN (1, 2) THEN 1 ELSE 0 END
                 ORDER BY a.seq) AS before_terms
FROM acts a
JOIN facts f ON f.log = a.log AND f.lease_hi = a.lease_hi AND f.lease_lo = a.lease_lo
     AND a.seq >= f.granted_seq AND a.seq <= COALESCE(f.ended_seq, f.last_seq)
LEFT JOIN voids v ON v.log = f.log AND v.granted_seq = f.granted_seq
WHERE f.plain = 0 OR v.void_seq IS NOT NULL

-- name: tenancies
-- Until which record a tenant pays, and the deadline that was in force then: of the last grant, renewal or notice that
-- counted.
SELECT k.log, k.granted_seq, k.until_seq, MIN(CASE WHEN k.seq = k.set_seq THEN k.deadline_ns END) AS deadline_ns
FROM (
    SELECT t.*,
           MAX(CASE WHEN t.act = 1 OR (t.act IN (2, 3) AND t.seq < t.until_seq AND t.boot = t.granted_boot) THEN t.seq END)
               OVER (PARTITION BY t.log, t.granted_seq) AS set_seq
    FROM (
        SELECT knotty.*,
               LEAST(COALESCE(torn_seq, 9223372036854775807), COALESCE(fenced_seq, 9223372036854775807),
                     COALESCE(void_seq, 9223372036854775807), COALESCE(ended_seq, 9223372036854775807)) AS until_seq
        FROM knotty
    ) t
) k
GROUP BY k.log, k.granted_seq, k.until_seq

-- name: marks
-- The records at which what is held, or who pays, changes. A renewal only where it changed the terms.
SELECT k.log, k.granted_seq, k.seq, k.boot, k.act, k.granted_boot, k.void_seq, t.until_seq, t.deadline_ns,
       GREATEST(b.start_ns,
                MAX(k.at_ns) OVER (PARTITION BY k.log, k.granted_seq, k.boot ORDER BY k.seq
                                   ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) AS start_ns,
       MAX(CASE WHEN k.act IN (1, 2, 6) THEN k.seq END)
           OVER (PARTITION BY k.log, k.granted_seq ORDER BY k.seq
                 ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS hold_seq,
       MAX(CASE WHEN k.act = 6 THEN 1 ELSE 0 END)
           OVER (PARTITION BY k.log, k.granted_seq ORDER BY k.seq
                 ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS is_fenced
FROM knotty k
JOIN tenancies t ON t.log = k.log AND t.granted_seq = k.granted_seq
JOIN boots b ON b.log = k.log AND b.boot = k.boot
WHERE k.act IN (1, 5, 6, 7)
   OR (k.act = 4 AND k.seq = t.until_seq AND k.boot = k.granted_boot)
   OR (k.act = 2 AND k.seq < t.until_seq AND k.boot = k.granted_boot AND k.terms <> k.before_terms)

-- name: stretches
-- From each mark to the next, boot by boot; what no record has ended yet goes to the watermark of its log.
SELECT m.log, m.hold_seq, b.boot, m.pool,
       CASE WHEN b.boot = m.boot THEN m.start_ns ELSE b.start_ns END AS start_ns,
       CASE WHEN b.boot = m.next_boot THEN m.next_ns ELSE b.end_ns END AS end_ns,
       CASE WHEN b.boot = m.boot AND m.pool = 0 AND (m.next_boot IS NULL OR b.boot <> m.next_boot)
            THEN m.deadline_ns ELSE 9223372036854775807 END AS deadline_ns,
       CASE WHEN b.boot = m.boot THEN m.pool WHEN m.pool = 2 THEN 2 ELSE 1 END AS payer,
       CASE WHEN m.next_boot IS NULL AND b.last = 1 THEN 1 ELSE 0 END AS is_open
FROM (
    SELECT w.*,
           CASE WHEN w.is_fenced = 1 THEN 2
                WHEN w.boot = w.granted_boot AND w.seq < w.until_seq
                     AND (w.void_seq IS NULL OR w.void_seq > w.until_seq
                          OR w.void_seq > COALESCE(w.next_seq, 9223372036854775807)) THEN 0
                ELSE 1 END AS pool
    FROM (
        SELECT marks.*,
               LEAD(seq) OVER (PARTITION BY log, granted_seq ORDER BY seq) AS next_seq,
               LEAD(boot) OVER (PARTITION BY log, granted_seq ORDER BY seq) AS next_boot,
               LEAD(start_ns) OVER (PARTITION BY log, granted_seq ORDER BY seq) AS next_ns
        FROM marks
    ) w
    WHERE w.act NOT IN (5, 7)
) m
JOIN boots b ON b.log = m.log AND b.boot >= m.boot AND b.boot <= COALESCE(m.next_boot, b.boot)

-- name: pieces
-- Who pays for what, on the boot clock. is_open: until the last record of the log, so far.
SELECT f.log, f.granted_boot AS boot, f.granted_seq AS hold_seq, 0 AS pool,
       GREATEST(f.granted_ns, b.start_ns) AS start_ns,
       GREATEST(COALESCE(f.torn_ns, f.ended_ns), f.granted_ns, b.start_ns) AS end_ns, 0 AS is_open
FROM facts f JOIN boots b ON b.log = f.log AND b.boot = f.granted_boot
LEFT JOIN voids v ON v.log = f.log AND v.granted_seq = f.granted_seq
WHERE f.plain = 1 AND v.void_seq IS NULL
UNION ALL
SELECT f.log, f.granted_boot, f.granted_seq, 1,
       GREATEST(f.torn_ns, f.granted_ns, b.start_ns),
       GREATEST(f.ended_ns, f.torn_ns, f.granted_ns, b.start_ns), 0
FROM facts f JOIN boots b ON b.log = f.log AND b.boot = f.granted_boot
LEFT JOIN voids v ON v.log = f.log AND v.granted_seq = f.granted_seq
WHERE f.plain = 1 AND f.torn_seq IS NOT NULL AND v.void_seq IS NULL
UNION ALL
SELECT log, boot, hold_seq, payer, start_ns, LEAST(end_ns, GREATEST(start_ns, deadline_ns)),
       CASE WHEN end_ns > deadline_ns THEN 0 ELSE is_open END
FROM stretches
UNION ALL
SELECT log, boot, hold_seq, 1, GREATEST(start_ns, deadline_ns), end_ns, is_open
FROM stretches WHERE end_ns > deadline_ns

-- name: owners
-- Who can be charged with what, by a number: sorting and grouping compare numbers, and names come back at the end. payer is
-- the same without priority and tag.
SELECT party_hi, party_lo, tenant, kind, tier, priority, tag, probe,
       CAST(ROW_NUMBER() OVER (ORDER BY tenant, kind, tier, priority, tag) AS INT) AS owner,
       CAST(DENSE_RANK() OVER (ORDER BY tenant, kind, tier) AS INT) AS payer
FROM (
    SELECT party_hi, party_lo, tenant, kind, tier, priority, tag, probe FROM parties
    UNION
    SELECT 0, 0, '', kind, tier, -1, '', 0 FROM others
) o

-- name: payers
SELECT DISTINCT payer, tenant, kind, tier FROM owners

-- name: spans
-- The same in label time, with what was held and by whom; and what lives held, until they were torn down and from then on.
SELECT p.log, p.pool, o.owner, o.payer, h.capacity,
       e.label_ns + (GREATEST(p.start_ns, e.start_ns) - e.start_ns) AS s,
       e.label_ns + (LEAST(p.end_ns, e.end_ns) - e.start_ns) AS e
FROM pieces p
JOIN holds h ON h.log = p.log AND h.seq = p.hold_seq
JOIN owners o ON o.party_hi = h.party_hi AND o.party_lo = h.party_lo
JOIN eras e ON e.log = p.log AND e.boot = p.boot
WHERE p.end_ns > p.start_ns AND p.start_ns < e.end_ns AND p.end_ns > e.start_ns
UNION ALL
SELECT l.log, k.pool, o.owner, o.payer, l.capacity,
       e.label_ns + (GREATEST(CASE WHEN k.pool = 0 THEN l.granted_ns ELSE l.torn_ns END, e.start_ns) - e.start_ns),
       e.label_ns + (LEAST(CASE WHEN k.pool = 0 THEN l.torn_ns ELSE l.ended_ns END, e.end_ns) - e.start_ns)
FROM lives l
JOIN owners o ON o.party_hi = l.party_hi AND o.party_lo = l.party_lo
JOIN eras e ON e.log = l.log AND e.boot = l.boot
CROSS JOIN (SELECT 0 AS pool UNION ALL SELECT 1) k
WHERE CASE WHEN k.pool = 0
           THEN l.torn_ns > l.granted_ns AND l.granted_ns < e.end_ns AND l.torn_ns > e.start_ns
           ELSE l.ended_ns > l.torn_ns AND l.torn_ns < e.end_ns AND l.ended_ns > e.start_ns END
UNION ALL
SELECT x.log, x.pool, o.owner, o.payer, x.capacity, x.s, x.e
FROM others x
JOIN owners o ON o.party_hi = 0 AND o.party_lo = 0 AND o.tenant = '' AND o.kind = x.kind AND o.tier = x.tier
     AND o.priority = -1 AND o.tag = ''

-- name: changes
-- By the hour: by how much what is held changes, and what that is until the end of the hour. What begins is added, what
-- ends is taken away again: a span of a month is two rows, not 720. One within an hour changes nothing by its end: it is one.
SELECT pool, owner, hour, CAST(SUM(wide(dl)) AS DECIMAL(38,0)) AS dl,
       CAST(SUM(CAST(held AS DECIMAL(38,0)) * CAST(for_ns AS DECIMAL(38,0))) AS DECIMAL(38,0)) AS cap_ns
FROM (
    SELECT pool, owner, idiv(s, 3600000000000) AS hour,
           CASE WHEN idiv(s, 3600000000000) < idiv(e, 3600000000000) THEN capacity ELSE 0 END AS dl,
           capacity AS held, LEAST(e, (idiv(s, 3600000000000) + 1) * 3600000000000) - s AS for_ns
    FROM spans WHERE capacity > 0
    UNION ALL
    SELECT pool, owner, idiv(e, 3600000000000), -capacity, -capacity, (idiv(e, 3600000000000) + 1) * 3600000000000 - e
    FROM spans WHERE capacity > 0 AND idiv(s, 3600000000000) < idiv(e, 3600000000000)
) d
GROUP BY pool, owner, hour

-- name: carried
-- The same with what is held from there on, up to the next hour in which it changes.
SELECT changes.*,
       CAST(SUM(dl) OVER (PARTITION BY pool, owner ORDER BY hour
                          ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS DECIMAL(38,0)) AS held,
       LEAD(hour) OVER (PARTITION BY pool, owner ORDER BY hour) AS next_hour
FROM changes

-- name: usage
SELECT c.hour, c.pool, o.tenant, o.kind, o.tier, o.priority, o.tag, c.cap_ns FROM (
    SELECT hour, pool, owner,
           CAST((held - dl) * CAST(3600000000000 AS DECIMAL(38,0)) + cap_ns AS DECIMAL(38,0)) AS cap_ns
    FROM carried
    UNION ALL
    SELECT h.hour, w.pool, w.owner, CAST(w.held * CAST(3600000000000 AS DECIMAL(38,0)) AS DECIMAL(38,0))
    FROM carried w JOIN hours h ON h.hour > w.hour AND h.hour < w.next_hour
    WHERE w.held > 0 AND w.next_hour > w.hour + 1
) c JOIN owners o ON o.owner = c.owner
WHERE c.cap_ns > 0

-- name: peaks
-- The sweep, an hour at a time, from what is held as it begins (added last). Where something ends there is no
-- peak: it was more before. What ends goes first, so what starts as another ends does not double the peak. slot is a payer
-- and an hour (there are less than 2^22) as one number: half of the time goes to sorting, and that is quicker by one.
WITH w AS (
    SELECT payer, hour, CAST(payer AS BIGINT) * 4194304 + hour AS slot, dl,
           CAST(SUM(dl) OVER (PARTITION BY payer ORDER BY hour
                              ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS DECIMAL(38,0)) AS held,
           LEAD(hour) OVER (PARTITION BY payer ORDER BY hour) AS next_hour
    FROM (
        SELECT o.payer, c.hour, CAST(SUM(c.dl) AS DECIMAL(38,0)) AS dl
        FROM changes c JOIN owners o ON o.owner = c.owner
        WHERE c.pool = 0
        GROUP BY o.payer, c.hour
    ) c
), d AS (
    SELECT CAST(payer AS BIGINT) * 4194304 + idiv(s, 3600000000000) AS slot, s AS t, capacity AS dl
    FROM spans WHERE pool = 0 AND capacity > 0
    UNION ALL
    SELECT CAST(payer AS BIGINT) * 4194304 + idiv(e, 3600000000000), e, -capacity
    FROM spans WHERE pool = 0 AND capacity > 0
    UNION ALL
    SELECT slot, hour * 3600000000000, 0 FROM w
), r AS (
    SELECT slot, dl,
           SUM(wide(dl)) OVER (PARTITION BY slot ORDER BY t, dl
                               ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS held
    FROM d
), m AS (
    SELECT slot, MAX(held) AS held FROM r WHERE dl >= 0 GROUP BY slot
)
SELECT o.tenant, o.kind, o.tier, c.hour, c.held FROM (
    SELECT w.payer, w.hour, CAST(w.held - w.dl + m.held AS DECIMAL(38,0)) AS held
    FROM m JOIN w ON w.slot = m.slot
    WHERE w.held - w.dl + m.held > 0
    UNION ALL
    SELECT w.payer, h.hour, w.held
    FROM w JOIN hours h ON h.hour > w.hour AND h.hour < w.next_hour
    WHERE w.held > 0 AND w.next_hour > w.hour + 1
) c JOIN payers o ON o.payer = c.payer

-- name: fleet_peaks
-- The same of all tenants together.
WITH held AS (
    SELECT o.kind, o.tier, c.capacity, c.s, c.e FROM spans c JOIN payers o ON o.payer = c.payer WHERE c.pool = 0
), d AS (
    SELECT kind, tier, s AS t, CAST(capacity AS DECIMAL(38,0)) AS dl FROM held
    UNION ALL
    SELECT kind, tier, e, -CAST(capacity AS DECIMAL(38,0)) FROM held
    UNION ALL
    SELECT g.kind, g.tier, h.hour * 3600000000000, CAST(0 AS DECIMAL(38,0))
    FROM (SELECT DISTINCT kind, tier FROM held) g CROSS JOIN hours h
), r AS (
    SELECT kind, tier, t,
           SUM(dl) OVER (PARTITION BY kind, tier ORDER BY t
                         RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS held
    FROM d
)
SELECT '' AS tenant, kind, tier, idiv(t, 3600000000000) AS hour, CAST(MAX(held) AS DECIMAL(38,0)) AS held
FROM r WHERE held > 0
GROUP BY kind, tier, idiv(t, 3600000000000)

-- name: released
-- The leases that ended in Released, each in the hour in which it was released; probes are none.
SELECT one.log, o.tenant, idiv(e.label_ns + (a.sealed_ns - e.start_ns), 3600000000000) AS hour
FROM (
    SELECT f.log, f.granted_seq, MIN(a.seq) AS seq
    FROM acts a
    JOIN facts f ON f.log = a.log AND f.lease_hi = a.lease_hi AND f.lease_lo = a.lease_lo
         AND a.seq > f.granted_seq AND a.seq <= COALESCE(f.ended_seq, f.last_seq)
    WHERE a.act = 9
    GROUP BY f.log, f.granted_seq
) one
JOIN acts a ON a.log = one.log AND a.seq = one.seq AND a.act = 9
JOIN holds h ON h.log = one.log AND h.seq = one.granted_seq AND h.slot = 0
JOIN owners o ON o.party_hi = h.party_hi AND o.party_lo = h.party_lo AND o.probe = 0
JOIN eras e ON e.log = a.log AND e.boot = a.boot AND a.sealed_ns >= e.start_ns
     AND (a.sealed_ns < e.end_ns OR e.final = 1)
UNION ALL
SELECT l.log, o.tenant, idiv(e.label_ns + (l.released_ns - e.start_ns), 3600000000000)
FROM lives l
JOIN owners o ON o.party_hi = l.party_hi AND o.party_lo = l.party_lo AND o.probe = 0
JOIN eras e ON e.log = l.log AND e.boot = l.boot AND l.released_ns >= e.start_ns
     AND (l.released_ns < e.end_ns OR e.final = 1)
WHERE l.slot = 0 AND l.released_ns IS NOT NULL

-- name: tasks
SELECT tenant, hour, COUNT(*) AS done FROM released GROUP BY tenant, hour

-- name: contributors
-- On which chains a tenant held or released something, by the day (UTC).
SELECT DISTINCT log, tenant, day FROM (
    SELECT c.log, o.tenant, c.day FROM (
        SELECT log, payer, idiv(s, 86400000000000) AS day FROM spans WHERE pool = 0 AND capacity > 0
        UNION ALL
        SELECT log, payer, idiv(e - 1, 86400000000000)
        FROM spans WHERE pool = 0 AND capacity > 0 AND idiv(e - 1, 86400000000000) > idiv(s, 86400000000000)
        UNION ALL
        SELECT log, payer, idiv(h.hour, 24)
        FROM spans JOIN hours h ON h.hour * 3600000000000 > s AND h.hour * 3600000000000 < e
        WHERE pool = 0 AND capacity > 0 AND idiv(e - 1, 86400000000000) > idiv(s, 86400000000000) + 1
    ) c JOIN payers o ON o.payer = c.payer
    UNION ALL
    SELECT log, tenant, idiv(hour, 24) FROM released
) d

-- name: held
-- What is held now.
SELECT p.log, p.pool, o.tenant, o.kind, o.tier, h.capacity
FROM pieces p JOIN holds h ON h.log = p.log AND h.seq = p.hold_seq
JOIN owners o ON o.party_hi = h.party_hi AND o.party_lo = h.party_lo
WHERE p.is_open = 1 AND p.end_ns > p.start_ns

-- name: quiet
-- Stretches of at least an hour in which a node had something and nobody held any of it: the gaps between what was held,
-- where there was something.
WITH used AS (
    SELECT log, s, e, MAX(e) OVER (PARTITION BY log ORDER BY s, e
                                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM spans WHERE pool = 0
), gaps AS (
    SELECT log, COALESCE(before, -9223372036854775807) AS s, s AS e FROM used WHERE before IS NULL OR s > before
    UNION ALL
    SELECT log, MAX(e), 9223372036854775807 FROM used GROUP BY log
    UNION ALL
    SELECT DISTINCT o.log, -9223372036854775807, 9223372036854775807
    FROM others o LEFT JOIN (SELECT DISTINCT log FROM used) u ON u.log = o.log WHERE u.log IS NULL
), there AS (
    SELECT log, s, e, MAX(e) OVER (PARTITION BY log ORDER BY s, e
                                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM others WHERE pool = 4
), begun AS (
    SELECT log, s, e, SUM(CASE WHEN before IS NULL OR s > before THEN 1 ELSE 0 END)
                      OVER (PARTITION BY log ORDER BY s, e ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS island
    FROM there
), islands AS (
    SELECT log, MIN(s) AS s, MAX(e) AS e FROM begun GROUP BY log, island
)
SELECT i.log, GREATEST(i.s, g.s) AS s, LEAST(i.e, g.e) AS e
FROM islands i JOIN gaps g ON g.log = i.log AND g.s < i.e AND g.e > i.s
WHERE LEAST(i.e, g.e) - GREATEST(i.s, g.s) >= 3600000000000
