//! robot.yaml: the tasks of a robot, its directories, and the file that describes its environment.
//!
//! A robot is read with the rules of `rcc run`. Paths in robot.yaml are relative to its directory, the root of the robot.
//! Reading it does not check that the files exist that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::hash::{system_and_processor, this_platform};
use super::{BlueprintError, read};
use crate::settings::absolute;
use crate::sys::lexically_clean;
use crate::yaml::{BadFile, Value, YamlError};

/// The name of the file in a robot's directory.
pub const FILE: &str = "robot.yaml";

/// A robot, as its robot.yaml describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Robot {
    /// The robot.yaml, absolute.
    pub file: PathBuf,
    /// `tasks`, by name. None when the key is missing.
    pub tasks: Option<BTreeMap<String, Task>>,
    /// `devTasks`, by name: what `--dev` runs instead of the tasks.
    pub dev_tasks: BTreeMap<String, Task>,
    /// `environmentConfigs`: files that describe the environment, the first choice first.
    pub environment_configs: Vec<String>,
    /// `condaConfigFile`: the file that describes the environment when no other one fits.
    pub conda_config_file: String,
    /// `artifactsDir`: the directory for results.
    pub artifacts_dir: String,
    /// `PATH`: directories of programs.
    pub path: Vec<String>,
    /// `PYTHONPATH`: directories of Python modules.
    pub python_path: Vec<String>,
    /// `ignoreFiles`: files with the patterns of what a packed robot leaves out.
    pub ignore_files: Vec<String>,
    /// `preRunScripts`: commands that run before a task, for all platforms.
    pub pre_run_scripts: Vec<String>,
}

/// A task of a robot. One of the three is set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Task {
    /// `robotTaskName`: a task of Robot Framework.
    pub robot_task_name: String,
    /// `shell`: a command line.
    pub shell: String,
    /// `command`: a program and its arguments.
    pub command: Vec<String>,
}

impl Robot {
    /// Reads a robot.yaml.
    ///
    /// # Errors
    /// When it cannot be read or is not YAML, or a value has the wrong kind.
    pub fn read(file: &Path) -> Result<Self, BlueprintError> {
        let file = absolute(file).unwrap_or_else(|_| file.to_owned());
        Self::parse(&file, &read::bytes(&file)?)
    }

    /// Parses the content of a robot.yaml.
    ///
    /// # Errors
    /// As [`Robot::read`].
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, BlueprintError> {
        let mut robot = Self { file: file.to_owned(), ..Self::default() };
        if let Some(root) = read::document(file, bytes)?.as_ref().and_then(|document| document.root()) {
            robot.fill(root).map_err(BadFile::at(file))?;
        }
        Ok(robot)
    }

    fn fill(&mut self, root: Value<'_>) -> Result<(), YamlError> {
        for (key, value) in root.entries()? {
            match key.text()?.as_str() {
                "tasks" => self.tasks = tasks(value, self.tasks.take())?,
                "devTasks" => {
                    self.dev_tasks =
                        tasks(value, Some(std::mem::take(&mut self.dev_tasks)))?.unwrap_or_default();
                }
                "environmentConfigs" => self.environment_configs = value.texts()?,
                "condaConfigFile" => self.conda_config_file = value.text()?,
                "artifactsDir" => self.artifacts_dir = value.text()?,
                "PATH" => self.path = value.texts()?,
                "PYTHONPATH" => self.python_path = value.texts()?,
                "ignoreFiles" => self.ignore_files = value.texts()?,
                "preRunScripts" => self.pre_run_scripts = value.texts()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks what rcc wants of every robot before it runs one: tasks, each with one definition, and an `artifactsDir`.
    ///
    /// # Errors
    /// [`BlueprintError::NoRobot`].
    pub fn check(&self) -> Result<(), BlueprintError> {
        let lacks = |why: String| Err(BlueprintError::NoRobot { path: self.file.clone(), why });
        let Some(tasks) = self.tasks.as_ref().filter(|tasks| !tasks.is_empty()) else {
            return lacks("`tasks` must have at least one task".to_owned());
        };
        if self.artifacts_dir.is_empty() {
            return lacks("`artifactsDir` is missing".to_owned());
        }
        match tasks.iter().find(|(_, task)| task.definitions() != 1) {
            Some((name, _)) => {
                lacks(format!("task {name:?} needs exactly one of robotTaskName, shell and command"))
            }
            None => Ok(()),
        }
    }

    /// The directory of robot.yaml, in which tasks run.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// The task of this name, in upper or lower case, or the only task when no name is given. With `dev` one of the
    /// developer tasks.
    ///
    /// # Errors
    /// [`BlueprintError::NoTask`] with the names of the tasks.
    pub fn task(&self, name: Option<&str>, dev: bool) -> Result<&Task, BlueprintError> {
        let all = if dev { Some(&self.dev_tasks) } else { self.tasks.as_ref() };
        let tasks = || all.into_iter().flatten();
        let name =
            name.map(|name| name.trim_matches(['\t', '\r', '\n', '"', '\'', ' '])).filter(|n| !n.is_empty());
        let found = match name {
            None => tasks().next().filter(|_| tasks().count() == 1).map(|(_, task)| task),
            Some(name) => all.and_then(|all| all.get(name)).or_else(|| {
                let lower = name.to_lowercase();
                tasks().find(|(known, _)| known.trim().to_lowercase() == lower).map(|(_, task)| task)
            }),
        };
        found.ok_or_else(|| BlueprintError::NoTask {
            path: self.file.clone(),
            name: name.map(str::to_owned),
            tasks: tasks().map(|(name, _)| name.clone()).collect(),
        })
    }

    /// The file that describes the environment: the first of `environmentConfigs` that is for this platform and exists,
    /// else `condaConfigFile`.
    ///
    /// # Errors
    /// [`BlueprintError::NoEnvironment`] when there is neither.
    pub fn environment_file(&self) -> Result<PathBuf, BlueprintError> {
        let here = |name: &&String| is_for_this_platform(name) && !is_frozen_elsewhere(name);
        let configs = self.environment_configs.iter().filter(here).map(|name| self.below_root(name));
        configs
            .into_iter()
            .find(|path| path.is_file())
            .or_else(|| {
                Some(&self.conda_config_file).filter(|name| !name.is_empty()).map(|n| self.below_root(n))
            })
            .ok_or_else(|| BlueprintError::NoEnvironment { path: self.file.clone() })
    }

    /// Whether the robot has an environment at all. Tasks of a robot without one run in the environment of the user.
    #[must_use]
    pub fn has_environment(&self) -> bool {
        self.environment_file().is_ok()
    }

    /// The archive `hololib.zip` beside robot.yaml, if it exists. rcc then uses it instead of its library.
    #[must_use]
    pub fn hololib_zip(&self) -> Option<PathBuf> {
        Some(self.root().join("hololib.zip")).filter(|path| path.is_file())
    }

    /// The directory for results, `ROBOT_ARTIFACTS`.
    #[must_use]
    pub fn artifacts(&self) -> PathBuf {
        self.below_root(&self.artifacts_dir)
    }

    /// The directories of `PATH`, absolute.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.all_below_root(&self.path)
    }

    /// The directories of `PYTHONPATH`, absolute.
    #[must_use]
    pub fn python_paths(&self) -> Vec<PathBuf> {
        self.all_below_root(&self.python_path)
    }

    /// The scripts to run before a task on this platform, each split into program and arguments.
    ///
    /// # Errors
    /// [`BlueprintError::NoRobot`] when one has unbalanced quotes, or no program.
    pub fn pre_run_commands(&self) -> Result<Vec<Vec<String>>, BlueprintError> {
        let here = self.pre_run_scripts.iter().filter(|script| is_for_this_platform(script));
        here.map(|script| self.split("preRunScripts", script)).collect()
    }

    /// The program and arguments of a task.
    ///
    /// # Errors
    /// [`BlueprintError::NoRobot`] when the task has no command, or a `shell` with unbalanced quotes.
    pub fn command_line(&self, task: &Task) -> Result<Vec<String>, BlueprintError> {
        if !task.robot_task_name.is_empty() {
            let before = ["python", "-m", "robot", "--report", "NONE", "--outputdir", &self.artifacts_dir];
            let after = ["--logtitle", "Task log", "--task", &task.robot_task_name, "."];
            return Ok(before.into_iter().chain(after).map(str::to_owned).collect());
        }
        if !task.shell.is_empty() {
            return self.split("shell", &task.shell);
        }
        if task.command.is_empty() {
            let why = "the task has none of robotTaskName, shell and command".to_owned();
            return Err(BlueprintError::NoRobot { path: self.file.clone(), why });
        }
        Ok(task.command.clone())
    }

    fn split(&self, what: &str, line: &str) -> Result<Vec<String>, BlueprintError> {
        shlex::split(line).filter(|words| !words.is_empty()).ok_or_else(|| BlueprintError::NoRobot {
            path: self.file.clone(),
            why: format!("{what}: {line:?} is not a command line"),
        })
    }

    /// A path below the root. As in rcc, a leading slash and `..` do not count.
    fn below_root(&self, name: &str) -> PathBuf {
        lexically_clean(&self.root().join(name.trim_start_matches('/')))
    }

    /// Existing directories with an absolute path stay as they are.
    fn all_below_root(&self, names: &[String]) -> Vec<PathBuf> {
        let place = |name: &String| {
            let path = Path::new(name);
            if path.is_absolute() && path.is_dir() { path.to_owned() } else { self.below_root(name) }
        };
        names.iter().map(place).collect()
    }
}

impl Task {
    fn definitions(&self) -> usize {
        [!self.robot_task_name.is_empty(), !self.shell.is_empty(), !self.command.is_empty()]
            .into_iter()
            .filter(|is_set| *is_set)
            .count()
    }
}

/// The tasks of a mapping, added to those of an earlier one. None for null.
fn tasks(
    value: Value<'_>,
    earlier: Option<BTreeMap<String, Task>>,
) -> Result<Option<BTreeMap<String, Task>>, YamlError> {
    if value.is_null() {
        return Ok(None);
    }
    let mut tasks = earlier.unwrap_or_default();
    for (name, value) in value.entries()? {
        let mut task = Task::default();
        for (key, value) in value.entries()? {
            match key.text()?.as_str() {
                "robotTaskName" => task.robot_task_name = value.text()?,
                "shell" => task.shell = value.text()?,
                "command" => task.command = value.texts()?,
                _ => {}
            }
        }
        tasks.insert(name.text()?, task);
    }
    Ok(Some(tasks))
}

/// Whether the first name of a processor and the first name of a system in the text, if there are any, are those of this
/// machine. As in rcc, they are found in upper and lower case, and must be in lower case.
fn is_for_this_platform(text: &str) -> bool {
    let (system, processor) = system_and_processor();
    is_first(text, &["amd64", "arm64"], processor) && is_first(text, &["windows", "darwin", "linux"], system)
}

fn is_first(text: &str, names: &[&str], wanted: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let first = names.iter().filter_map(|name| Some((lower.find(name)?, name.len()))).min();
    first.is_none_or(|(at, len)| text.get(at..at + len) == Some(wanted))
}

/// Whether a name looks like that of a frozen environment of another platform.
fn is_frozen_elsewhere(name: &str) -> bool {
    let is_frozen = name.matches('_').count() > 2 || name.to_lowercase().contains("freeze");
    is_frozen && !name.contains(&this_platform())
}

#[cfg(test)]
mod tests;
