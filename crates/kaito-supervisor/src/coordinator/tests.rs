//! Ranks that report in whatever order, whose reports and answers are lost or late, whose engines and supervisors end.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::follow::{Action, follow};

/// A rank as it truly is.
struct Truth {
    supervisor: u64,
    sequence: u64,
    state: State,
    ended: Option<Ended>,
    contact: Instant,
    order: Option<Order>,
}

impl Truth {
    fn new(supervisor: u64, now: Instant) -> Self {
        Self { supervisor, sequence: 0, state: State::Idle, ended: None, contact: now, order: None }
    }
}

struct World {
    coordinator: Coordinator,
    ranks: Vec<Truth>,
    now: Instant,
    /// Counts supervisors, each of which has a start of its own.
    starts: u64,
    /// Reports that were sent to this coordinator and may come again, or for the first time.
    sent: Vec<(usize, Report)>,
}

#[derive(Debug, Clone)]
enum Event {
    /// A rank reports and does what is answered.
    Exchange(usize),
    /// A rank reports, and the answer is lost.
    AnswerLost(usize),
    /// A rank's report is lost, or comes later.
    ReportLost(usize),
    /// One of the reports that were sent comes once more.
    Late(prop::sample::Index),
    EngineEnds(usize),
    /// What was told to end has ended.
    EngineGone(usize),
    /// A container is started again.
    Replaced(usize),
    Seconds(u64),
    Front(Health),
}

fn ended(incarnation: Incarnation, by_itself: bool) -> Ended {
    Ended { incarnation, by_itself, how: "ended with exit status 1".to_owned(), words: None }
}

impl World {
    fn new(ranks: usize) -> Self {
        let now = Instant::now();
        let truth =
            |supervisor| Truth { supervisor, sequence: 0, state: State::Idle, ended: None, contact: now, order: None };
        let supervisors: Vec<_> = (1..=ranks as u64).map(truth).collect();
        Self {
            coordinator: Coordinator::new(1, ranks),
            ranks: supervisors,
            now,
            starts: ranks as u64,
            sent: Vec::new(),
        }
    }

    fn report(&mut self, rank: usize) -> Report {
        let truth = &mut self.ranks[rank];
        truth.sequence += 1;
        let report = Report {
            supervisor: truth.supervisor,
            sequence: truth.sequence,
            token: truth.order.map(|order| order.token),
            state: truth.state,
            phase: None,
            ended: truth.ended.clone(),
            stopped: Vec::new(),
            leaves: false,
        };
        self.sent.push((rank, report.clone()));
        report
    }

    /// Whatever makes an incarnation start, no rank has an engine then.
    fn coordinate(&mut self, act: impl FnOnce(&mut Coordinator, Instant)) {
        let before = self.coordinator.current();
        act(&mut self.coordinator, self.now);
        let after = self.coordinator.current();
        if after.1 && after != before {
            assert!(self.ranks.iter().all(|truth| truth.state == State::Idle), "{after:?} starts beside another");
        }
    }

    fn deliver(&mut self, rank: usize, report: Report) -> Order {
        let mut order = None;
        self.coordinate(|coordinator, now| order = coordinator.report(rank, report, now));
        order.unwrap()
    }

    /// What a rank does with what it knows.
    fn act(&mut self, rank: usize) {
        let now = self.now;
        let truth = &mut self.ranks[rank];
        let order = truth.order.filter(|_| now - truth.contact < LOST);
        match follow(truth.state, truth.ended.as_ref(), order.as_ref()) {
            Action::None => {}
            Action::Start(incarnation) => truth.state = State::Running(incarnation),
            Action::End { .. } => {
                let (State::Running(incarnation) | State::Ending(incarnation)) = truth.state else {
                    panic!("nothing to end")
                };
                truth.state = State::Ending(incarnation);
            }
            Action::Exit => self.replace(rank),
        }
    }

    fn exchange(&mut self, rank: usize) {
        let report = self.report(rank);
        let order = self.deliver(rank, report);
        let truth = &mut self.ranks[rank];
        (truth.order, truth.contact) = (Some(order), self.now);
        self.act(rank);
    }

    fn replace(&mut self, rank: usize) {
        self.starts += 1;
        self.ranks[rank] = Truth::new(self.starts, self.now);
        if rank == 0 {
            self.coordinator = Coordinator::new(self.starts, self.ranks.len());
            self.sent.clear();
        }
    }

    fn gone(&mut self, rank: usize) {
        let truth = &mut self.ranks[rank];
        if let State::Ending(incarnation) = truth.state {
            (truth.state, truth.ended) = (State::Idle, Some(ended(incarnation, false)));
        }
    }

    fn happen(&mut self, event: Event) {
        let ranks = self.ranks.len();
        match event {
            Event::Exchange(rank) => self.exchange(rank % ranks),
            Event::AnswerLost(rank) => {
                let report = self.report(rank % ranks);
                self.deliver(rank % ranks, report);
                self.act(rank % ranks);
            }
            Event::ReportLost(rank) => {
                self.report(rank % ranks);
                self.act(rank % ranks);
            }
            Event::Late(which) if !self.sent.is_empty() => {
                let (rank, report) = which.get(&self.sent).clone();
                self.deliver(rank, report);
            }
            Event::Late(_) => {}
            Event::EngineEnds(rank) => {
                let truth = &mut self.ranks[rank % ranks];
                if let State::Running(incarnation) = truth.state {
                    (truth.state, truth.ended) = (State::Idle, Some(ended(incarnation, true)));
                }
            }
            Event::EngineGone(rank) => self.gone(rank % ranks),
            Event::Replaced(rank) => self.replace(rank % ranks),
            Event::Seconds(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.coordinate(|coordinator, now| coordinator.look(now));
                (0..ranks).for_each(|rank| self.act(rank));
            }
            Event::Front(health) => self.coordinate(|coordinator, now| coordinator.front(health, now)),
        }
        let engines = self.ranks.iter().filter_map(|truth| match truth.state {
            State::Idle => None,
            State::Running(incarnation) | State::Ending(incarnation) => Some(incarnation),
        });
        let incarnations: HashSet<_> = engines.collect();
        assert!(incarnations.len() <= 1, "engines of {incarnations:?} at once");
        assert!(self.coordinator.ranks.iter().filter(|rank| rank.exit).count() <= 1, "one alone was the first");
    }

    /// A second in which all goes well for these ranks.
    fn round(&mut self, ranks: impl Iterator<Item = usize>) {
        for rank in ranks {
            self.gone(rank);
            self.exchange(rank);
        }
        self.now += Duration::from_secs(1);
        self.coordinate(|coordinator, now| coordinator.look(now));
    }

    fn all_run(&self) -> bool {
        let (current, runs) = self.coordinator.current();
        runs && self.ranks.iter().all(|truth| truth.state == State::Running(current))
    }
}

fn event() -> impl Strategy<Value = Event> {
    let rank = 0..5_usize;
    let stuck = Just(Health::Stuck("The engine is stuck: no progress for 9 s.".to_owned()));
    let health = prop_oneof![Just(Health::Ready), stuck, Just(Health::Gone), Just(Health::Unfit("away".to_owned()))];
    prop_oneof![
        12 => rank.clone().prop_map(Event::Exchange),
        2 => rank.clone().prop_map(Event::AnswerLost),
        2 => rank.clone().prop_map(Event::ReportLost),
        2 => any::<prop::sample::Index>().prop_map(Event::Late),
        2 => rank.clone().prop_map(Event::EngineEnds),
        3 => rank.clone().prop_map(Event::EngineGone),
        1 => rank.prop_map(Event::Replaced),
        3 => (0..15_u64).prop_map(Event::Seconds),
        2 => health.prop_map(Event::Front),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// [`World::coordinate`] and [`World::happen`] say what must hold meanwhile.
    #[test]
    fn whatever_happens_engines_start_when_there_is_none_and_all_run_again(
        ranks in 1..5_usize,
        events in prop::collection::vec(event(), 0..120),
        lost in 0..5_usize,
    ) {
        let mut world = World::new(ranks);
        events.into_iter().for_each(|event| world.happen(event));
        for _ in 0..8 {
            world.round(0..ranks);
        }
        prop_assert!(world.all_run(), "{:?}", world.coordinator);
        // One of them is not heard of any more: nobody computes, and as soon as it is back all do.
        let lost = lost % ranks;
        if ranks > 1 {
            for _ in 0..=LOST.as_secs() + 2 {
                if lost == 0 {
                    // The others hear nothing, and time goes on.
                    world.now += Duration::from_secs(1);
                    (1..ranks).for_each(|rank| world.act(rank));
                } else {
                    world.round((0..ranks).filter(|rank| *rank != lost));
                    world.act(lost);
                }
            }
            for rank in (0..ranks).filter(|rank| *rank != 0 || lost != 0) {
                prop_assert!(!matches!(world.ranks[rank].state, State::Running(_)), "rank {rank} goes on without {lost}");
            }
            for _ in 0..8 {
                world.round(0..ranks);
            }
            prop_assert!(world.all_run(), "{:?}", world.coordinator);
        }
    }
}

/// Three ranks that run.
fn running() -> World {
    let mut world = World::new(3);
    for _ in 0..4 {
        world.round(0..3);
    }
    assert!(world.all_run());
    world
}

fn cause(world: &World) -> String {
    crate::cause::overview(&world.coordinator, world.now).cause.unwrap_or_default()
}

#[test]
fn a_rank_that_is_lost_ends_all_ranks() {
    let mut world = running();
    for _ in 0..11 {
        world.round(0..2);
    }
    assert_eq!(world.coordinator.over, Some(Over::Lost { rank: 2 }));
    assert_eq!(world.ranks[1].state, State::Idle);
    let said = cause(&world);
    assert!(
        said.contains("rank 2 did not report any more") && said.contains("rank 2 has not reported for 1"),
        "{said}"
    );
}

#[test]
fn the_rank_whose_engine_ended_by_itself_first_is_the_one_that_exits() {
    let mut world = running();
    world.happen(Event::EngineEnds(2));
    world.happen(Event::EngineEnds(1));
    let supervisors = |world: &World| world.ranks.iter().map(|truth| truth.supervisor).collect::<Vec<_>>();
    assert_eq!(supervisors(&world), [1, 2, 3]);
    world.happen(Event::Exchange(2));
    world.happen(Event::Exchange(1));
    assert_eq!(supervisors(&world), [1, 2, 4], "the other one stays");
    assert!(cause(&world).contains("the engine of rank 2 ended with exit status 1"), "{}", cause(&world));
    for _ in 0..5 {
        world.round(0..3);
    }
    assert!(world.all_run());
}

#[test]
fn an_engine_that_is_stuck_is_killed_at_once_and_its_stopped_processes_are_named() {
    let mut world = running();
    world.happen(Event::Front(Health::Ready));
    assert_eq!(world.coordinator.phase(), Phase::Running);
    let stopped = Process { pid: 4711, name: "VLLM::Worker_TP".to_owned() };
    let report = Report { stopped: vec![stopped], ..world.report(2) };
    world.deliver(2, report);
    assert_eq!(cause(&world), "Stopped processes: 4711 (VLLM::Worker_TP) of rank 2.");
    world.happen(Event::Front(Health::Stuck("The engine is stuck: no progress for 9 s.".to_owned())));
    let report = world.report(1);
    let order = world.deliver(1, report);
    assert!(!order.run && order.kill, "{order:?}");
    let said = cause(&world);
    for part in ["The engine is stuck: no progress for 9 s", "stopped processes: 4711 (VLLM::Worker_TP) of rank 2"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn an_engine_that_loads_is_not_taken_for_one_that_is_stuck() {
    let mut world = running();
    let health = || Health::Unfit("The engine is away, or still loading".to_owned());
    for _ in 0..600 {
        world.happen(Event::Front(health()));
        world.round(0..3);
    }
    assert!(world.all_run());
    assert_eq!(world.coordinator.phase(), Phase::Starting);
    // One that was ready and is not for a minute does not come back.
    world.happen(Event::Front(Health::Ready));
    for _ in 0..59 {
        world.happen(Event::Front(health()));
        world.round(0..3);
    }
    assert!(world.all_run());
    for _ in 0..2 {
        world.happen(Event::Front(health()));
        world.now += Duration::from_secs(1);
    }
    assert!(!world.coordinator.current().1);
}

#[test]
fn a_front_that_is_away_ends_no_engine() {
    let mut world = running();
    world.happen(Event::Front(Health::Ready));
    for _ in 0..600 {
        world.happen(Event::Front(Health::Gone));
        world.round(0..3);
    }
    assert!(world.all_run());
}

#[test]
fn a_supervisor_that_was_replaced_ends_what_it_has() {
    let mut world = running();
    let report = world.report(1);
    world.happen(Event::Replaced(1));
    (0..2).for_each(|_| world.happen(Event::Exchange(1)));
    assert_eq!(world.coordinator.over, Some(Over::Replaced { rank: 1 }));
    let order = world.deliver(1, Report { sequence: report.sequence + 1, ..report });
    assert!(!order.run && order.kill, "{order:?}");
}

#[test]
fn a_rank_that_was_told_to_end_is_waited_for_until_another_is_in_its_place() {
    let mut world = World::new(2);
    (0..2).for_each(|_| world.happen(Event::Exchange(1)));
    let report = Report { leaves: true, ..world.report(1) };
    world.deliver(1, report);
    (0..2).for_each(|_| world.happen(Event::Exchange(0)));
    assert!(!world.coordinator.current().1);
    assert_eq!(cause(&world), "All ranks start together when they can: rank 1 was told to end.");
    world.happen(Event::Replaced(1));
    for _ in 0..4 {
        world.round(0..2);
    }
    assert!(world.all_run());
}

#[test]
fn after_a_shutdown_no_engine_runs_until_there_is_another_front() {
    let mut world = running();
    world.happen(Event::Front(Health::Ready));
    world.coordinator.shut_down(world.now);
    // An answer of before that came late, then the last ones of the front that ends.
    for health in [Health::Ready, Health::Drains, Health::Gone, Health::Gone] {
        world.happen(Event::Front(health));
        for _ in 0..4 {
            world.round(0..3);
        }
        assert!(world.ranks.iter().all(|truth| truth.state == State::Idle), "{:?}", world.coordinator);
    }
    let said = cause(&world);
    assert!(
        said.contains("a client asked for it (/shutdown)") && said.contains("start again with the front"),
        "{said}"
    );
    world.happen(Event::Front(Health::Unfit("The model is loading".to_owned())));
    for _ in 0..4 {
        world.round(0..3);
    }
    assert!(world.all_run());
}
