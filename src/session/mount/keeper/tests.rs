use std::process::Command;

use super::*;

/// How a shell that runs `command` ends.
#[expect(clippy::zombie_processes, reason = "waitpid(2) reaps it")]
fn ended(command: &str) -> WaitStatus {
    let child = Command::new("sh").args(["-c", command]).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    rustix::process::waitpid(pid, WaitOptions::empty()).unwrap().unwrap().1
}

/// A keeper whose workers are told to have ended.
struct Lab {
    handoff: Handoff,
}

impl Lab {
    fn new(phase: Phase) -> Self {
        let handoff = Handoff::private().unwrap();
        handoff.reach(phase);
        Self { handoff }
    }

    fn keeper(&self) -> Keeper<'_> {
        Keeper {
            handoff: &self.handoff,
            service: None,
            passing: None,
            signals: Signals::block(&[]),
            watch: None,
            hung: false,
            asked: None,
            crashes: [None; CRASHES],
            silent: 0,
        }
    }

    /// Starts a worker, which answers or not, and ends.
    fn round(&self, keeper: &mut Keeper<'_>, task: Task, answers: bool, command: &str) -> Next {
        self.handoff.begin();
        if answers {
            self.handoff.note_answering();
        }
        keeper.next(task, ended(command))
    }
}

const SERVE: Next = Next::Start(Task::Serve);

#[test]
fn first_worker_that_dies_before_it_answers_ends_the_mount() {
    let lab = Lab::new(Phase::Starting);
    let mut keeper = lab.keeper();
    let next = lab.round(&mut keeper, Task::Serve, false, "kill -KILL $$");
    assert_eq!(next, Next::Start(Task::GiveUp(Why::NeverAnswered)));
    assert_eq!(lab.round(&mut keeper, Task::Serve, false, "exit 7"), Next::Exit(7));
}

#[test]
fn five_crashes_in_a_short_time_end_the_mount_and_kills_do_not() {
    let lab = Lab::new(Phase::Serving);
    let mut keeper = lab.keeper();
    for _ in 0..10 {
        assert_eq!(lab.round(&mut keeper, Task::Serve, true, "kill -KILL $$"), SERVE);
    }
    // To end with an error is a crash, too.
    for command in ["kill -SEGV $$", "exit 101", "kill -ABRT $$", "kill -BUS $$"] {
        assert_eq!(lab.round(&mut keeper, Task::Serve, true, command), SERVE);
    }
    let next = lab.round(&mut keeper, Task::Serve, true, "kill -ABRT $$");
    assert_eq!(next, Next::Start(Task::GiveUp(Why::Crashes)));
}

#[test]
fn workers_that_do_not_come_to_answer_end_the_mount() {
    let lab = Lab::new(Phase::Serving);
    let mut keeper = lab.keeper();
    for _ in 0..SILENT {
        assert_eq!(lab.round(&mut keeper, Task::Serve, false, "kill -KILL $$"), SERVE);
    }
    let next = lab.round(&mut keeper, Task::Serve, false, "kill -ABRT $$");
    assert_eq!(next, Next::Start(Task::GiveUp(Why::Silent)));
}

#[test]
fn a_worker_that_answered_starts_the_count_anew() {
    let lab = Lab::new(Phase::Serving);
    let mut keeper = lab.keeper();
    for answers in [false, false, false, false, true, false] {
        assert_eq!(lab.round(&mut keeper, Task::Serve, answers, "kill -KILL $$"), SERVE);
    }
    assert_eq!(keeper.silent, 1);
}

#[test]
fn a_worker_that_dies_while_the_mount_is_to_end_is_not_replaced_by_one_that_serves() {
    let gives_up = Next::Start(Task::GiveUp(Why::AskedToEnd));
    let lab = Lab::new(Phase::Serving);
    let mut keeper = lab.keeper();
    assert_eq!(lab.round(&mut keeper, Task::Serve, true, "kill -TERM $$"), gives_up);
    keeper.asked = Some(Signal::TERM);
    assert_eq!(lab.round(&mut keeper, Task::Serve, true, "kill -KILL $$"), gives_up);
    let lab = Lab::new(Phase::Ending);
    let mut keeper = lab.keeper();
    let next = lab.round(&mut keeper, Task::Serve, true, "kill -KILL $$");
    assert_eq!(next, Next::Start(Task::Finish));
}

#[test]
fn a_worker_that_makes_room_for_another_program_did_not_die() {
    let lab = Lab::new(Phase::Serving);
    let mut keeper = lab.keeper();
    for _ in 0..CRASHES {
        assert_eq!(lab.round(&mut keeper, Task::Serve, true, "exit 75"), Next::Upgrade);
    }
    assert_eq!(lab.handoff.last_death(), None);
    keeper.asked = Some(Signal::TERM);
    let gives_up = Next::Start(Task::GiveUp(Why::AskedToEnd));
    assert_eq!(lab.round(&mut keeper, Task::Serve, true, "exit 75"), gives_up);
}

#[test]
fn the_earlier_program_goes_on_until_the_new_one_has_answered() {
    let lab = Lab::new(Phase::Serving);
    let mut keeper = Keeper { passing: Some(Passing::after(-1)), ..lab.keeper() };
    assert_eq!(lab.round(&mut keeper, Task::Serve, false, "kill -SEGV $$"), Next::GoBack);
    assert_eq!(lab.round(&mut keeper, Task::Serve, false, "exit 1"), Next::GoBack);
    assert_eq!(lab.round(&mut keeper, Task::Serve, true, "kill -KILL $$"), SERVE);
    assert_eq!(lab.round(&mut keeper, Task::Serve, false, "kill -KILL $$"), SERVE);
}

#[test]
fn whoever_ends_the_mount_is_not_replaced() {
    let lab = Lab::new(Phase::Serving);
    let mut keeper = lab.keeper();
    for task in [Task::Finish, Task::GiveUp(Why::Silent)] {
        assert_eq!(lab.round(&mut keeper, task, true, "kill -KILL $$"), Next::Exit(1));
        assert_eq!(lab.round(&mut keeper, task, true, "exit 0"), Next::Exit(0));
    }
    assert_eq!(lab.round(&mut keeper, Task::Serve, true, "exit 0"), Next::Exit(0));
}
