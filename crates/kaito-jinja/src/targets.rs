//! What values are assigned to: targets, and the parameters of macros.

use crate::ast::{Expr, Symbol, Target};
use crate::lexer::Token;
use crate::parser::{Parsed, Parser};

impl Parser {
    pub(crate) fn signature(&mut self) -> Parsed<Vec<(Symbol, Option<Expr>)>> {
        let mark = self.unknown.len();
        let mut parameters: Vec<(Symbol, Option<Expr>)> = Vec::new();
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.target_name()?;
            self.store(&name);
            let symbol = self.symbol(name.clone());
            if parameters.iter().any(|(other, _)| *other == symbol) {
                return self.error(format!("duplicate argument '{name}' in a macro's parameters"));
            }
            let default = if self.accept_op("=") {
                Some(self.expression(true)?)
            } else if parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return self.error("non-default argument follows default argument");
            } else {
                None
            };
            parameters.push((symbol, default));
        }
        self.skip();
        self.known_since(mark)?;
        Ok(parameters)
    }

    pub(crate) fn target_name(&mut self) -> Parsed<String> {
        let name = self.name()?;
        if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
            return self.error(format!("can't assign to '{name}'"));
        }
        Ok(name)
    }

    /// Targets with commas between them. As in Jinja2, `in` does not end such a list after a comma.
    pub(crate) fn target_tuple(&mut self, namespaces: bool) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let at_end = matches!(self.current(), Token::BlockEnd | Token::VariableEnd) || self.is_op(")");
            if at_end {
                break;
            }
            targets.push(self.nested(|parser| parser.target(namespaces))?);
            if !self.accept_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(target) if !is_tuple => Ok(target),
            None => self.error(format!("Expected an expression, got '{}'", self.current().describe())),
            Some(target) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn target(&mut self, namespaces: bool) -> Parsed<Target> {
        if self.accept_op("(") {
            if self.accept_op(")") {
                return Ok(Target::Tuple(Vec::new()));
            }
            let target = self.target_tuple(false)?;
            self.expect_op(")")?;
            return Ok(target);
        }
        if !matches!(self.current(), Token::Name(_)) {
            return self.error(format!("can't assign to '{}'", self.current().describe()));
        }
        let name = self.target_name()?;
        if namespaces && self.accept_op(".") {
            self.load(&name);
            let attribute = self.name()?;
            return Ok(Target::Attribute(self.symbol(name), self.symbol(attribute)));
        }
        self.store(&name);
        if name == "loop" && self.loops > 0 {
            return self.error("Can't assign to special loop variable in for-loop target");
        }
        Ok(Target::Name(self.symbol(name)))
    }
}
